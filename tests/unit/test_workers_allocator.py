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
    for _ in range(40):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(6_000_000)  # 24 MB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    answer.send(counts)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    # glibc's own threshold may rise by itself, depending on what was freed before: hold it where it begins.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    context = multiprocessing.get_context("spawn")
    counts = {}
    for keep in (False, True):
        ours, theirs = context.Pipe()
        process = context.Process(target=faults, args=(theirs, keep))
        process.start()
        counts[keep] = ours.recv()
        process.join()
    assert sum(counts[True][-4:]) * 10 < sum(counts[False][-4:]), counts
