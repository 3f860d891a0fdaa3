"""Freed memory stays with the process: the second time the same blocks cost no page faults."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from multiprocessing.connection import Connection

import pytest
import torch
from rlinf.workers.allocator import keep_freed_memory


def faults(answer: Connection, keep: bool) -> None:
    if keep:
        keep_freed_memory()
    torch.set_num_threads(1)
    counts = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(megabytes * 250_000) for megabytes in (30, 4, 24, 8, 28, 12, 20, 16, 30)]
        while blocks:
            blocks.pop()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    answer.send(counts)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    context = multiprocessing.get_context("spawn")
    counts = {}
    for keep in (False, True):
        ours, theirs = context.Pipe()
        process = context.Process(target=faults, args=(theirs, keep))
        process.start()
        counts[keep] = ours.recv()
        process.join()
    assert sum(counts[True][-4:]) * 10 < sum(counts[False][-4:]), counts
