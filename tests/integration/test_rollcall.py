"""Ranks that differ or do not come, over real gloo: the rank and what it is about are named."""

from __future__ import annotations

import datetime
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from rlinf.fsdp.errors import LostRank
from rlinf.fsdp.rollcall import RollCall, collective
from rlinf.fsdp.sharding import require_agreement

TIMEOUT = datetime.timedelta(seconds=4)


class Trainer:
    """Two methods that all ranks call together."""

    def __init__(self, store: dist.Store, rank: int) -> None:
        self.args = SimpleNamespace(world_size=2)
        self.roll_call = RollCall(store, rank, 2)

    @collective
    def update(self, absent: bool = False) -> float:
        if absent:
            os.kill(os.getpid(), signal.SIGSTOP)
        x = torch.ones(1)
        dist.all_reduce(x)
        return x.item()


def join(rank: int, file: str) -> dist.Store:
    store = dist.FileStore(file, 2)
    store.set_timeout(TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=TIMEOUT)
    return store


def rank_that(what: str, rank: int, file: str, results: str) -> None:
    """One rank; what it ends with goes to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = join(rank, file)
    said = "nothing"
    try:
        if what == "differs":
            require_agreement({"config actor.optim.lr": 0.1 if rank == 0 else 0.2, "torch": "same"})
        elif what == "silent":
            if rank == 1:
                time.sleep(30)
            require_agreement({"torch": "same"})
        else:
            trainer = Trainer(store, rank)
            assert trainer.update() == 2
            if what == "dies" and rank == 1:
                os._exit(1)
            trainer.update(absent=rank == 1)
    except (LostRank, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    Path(results, str(rank)).write_text(said)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "differs",
            "ValueError: the ranks differ: config actor.optim.lr is 0.1 on rank 0 and 0.2 on rank 1.",
        ),
        ("silent", "LostRank: rank 1 has not reported its plan in time"),
        (
            "stops",
            "LostRank: rank 0 was left alone in update (call 2): rank 1 is missing, last seen in update",
        ),
        (
            "dies",
            "LostRank: rank 0 was left alone in update (call 2): rank 1 is missing, last seen in update",
        ),
    ],
)
def test_a_rank_that_differs_or_is_missing_is_named(what: str, words: str, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=rank_that, args=(what, rank, str(tmp_path / "store"), str(tmp_path)))
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            rank.start()
        ranks[0].join(60)
        said = (tmp_path / "0").read_text()
        assert said.startswith(words), said
        if what == "stops":
            assert "(call 2) on host" in said and f"pid {ranks[1].pid}" in said
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
