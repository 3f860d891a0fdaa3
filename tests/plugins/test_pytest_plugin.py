"""The pytest plugin: its fixtures, its weight, and which plugins it lets the tests discover."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rlinf.testing import RankError, RankPool
from rlinf.testing.network import NetworkRefused, is_loopback
from rlinf.testing.pytest_plugin import distribution_under_test

ROOT = Path(__file__).parents[2]


def sum_of_ranks(value: float) -> tuple[int, float]:
    """Runs on each rank."""
    total = torch.tensor(value * (dist.get_rank() + 1))
    dist.all_reduce(total)
    return os.getpid(), float(total)


def fail_on_rank_one() -> None:
    """Rank 0 waits for a rank that does not come."""
    if dist.get_rank() == 1:
        raise KeyError("no such block")
    dist.all_reduce(torch.zeros(1))


def test_two_ranks_return_their_results_and_survive_a_failure(two_ranks: RankPool) -> None:
    (one, total), (other, same) = two_ranks(sum_of_ranks, 2.0)
    assert total == same == 6.0 and len({one, other, os.getpid()}) == 3
    with pytest.raises(RankError, match="KeyError: 'no such block'"):
        two_ranks(fail_on_rank_one)
    assert [result for _, result in two_ranks(sum_of_ranks, 1.0)] == [3.0, 3.0]


def test_tiny_ray_runs_a_task(tiny_ray: Any) -> None:
    assert tiny_ray.get(tiny_ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    assert tiny_ray.cluster_resources()["CPU"] == 2


@pytest.mark.usefixtures("offline")
def test_offline_refuses_all_but_loopback() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(NetworkRefused, match=r"a connection to '192\.0\.2\.1' is refused"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(NetworkRefused, match=r"huggingface\.co"):
        socket.create_connection(("huggingface.co", 443), timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(NetworkRefused):
        sender.sendto(b"x", ("192.0.2.1", 9))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        server.accept()[0].close()
    here, there = socket.socketpair()
    here.close(), there.close()


def test_the_network_is_back_after_offline() -> None:
    assert "HF_HUB_OFFLINE" not in os.environ and "testing" not in socket.getaddrinfo.__module__


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), (None, True),
     ("10.0.0.1", False), ("0.0.0.1", False), ("example.org", False), ("::2", False)],
)  # fmt: skip
def test_loopback(host: str | None, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_fake_tokenizer_is_lossless_and_pads(fake_tokenizer: Any) -> None:
    texts = ["push the red cube", "naïve 箱", "  two  spaces", ""]
    batch = fake_tokenizer(texts, padding=True, return_tensors="pt")
    assert fake_tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == texts
    assert batch["attention_mask"].sum(1).tolist() == [len(text.encode()) for text in texts]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert (
        len(fake_tokenizer) == 260 and fake_tokenizer("ab")["input_ids"] == fake_tokenizer("ab")["input_ids"]
    )


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, rlinf.testing.pytest_plugin\n"
        "heavy = ('torch', 'ray', 'numpy', 'transformers', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MINE, OTHER = "rlinf-plugin-mine", "rlinf-plugin-other"
SEEN = """
from rlinf.plugins import get_host

def test_what_is_seen(request):
    names = get_host().model_types()
    assert "mlp_policy" in names and "mine" in names
    assert ("other" in names) == {everything}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A plugin's project, and another plugin that happens to be installed beside it."""
    for name, model_type in ((MINE, "mine"), (OTHER, "other")):
        metadata = tmp_path / "site" / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Name: {name}\n")
        (metadata / "entry_points.txt").write_text(f"[rlinf.models]\n{model_type} = its_module\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "RLinf_Plugin.mine"\n')
    return tmp_path


@pytest.mark.parametrize("options", [(), ("--rlinf-all-plugins",)])
def test_only_the_plugin_under_test_is_discovered(project: Path, options: tuple[str, ...]) -> None:
    (project / "test_seen.py").write_text(SEEN.format(everything=bool(options)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_distribution_under_test_is_that_of_the_folder(project: Path) -> None:
    assert distribution_under_test(project) == "RLinf_Plugin.mine"
    assert distribution_under_test(project / "site") is None
    assert distribution_under_test(ROOT) is None
