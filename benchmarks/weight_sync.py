"""Weight sync from trainer to rollout: pack, ray.put, get in an actor, copy into parameters; against memcpy.

    python benchmarks/weight_sync.py [--megabytes 200] [--repeats 5] [--dtype float32]

Prints the time of each stage, the bandwidth end to end, and two ratios: to one memcpy of those bytes in one
process (three copies are the least: into the buffer, into shared memory, into the parameters), and to sending
the same weights as a dict of tensors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from rlinf.fsdp.weights import Index, copy_into, pack, unpack
from torch import nn

WIDTH = 1024


def make_model(megabytes: int, dtype: torch.dtype) -> nn.Module:
    """Linear layers of about that size in all; initial values are irrelevant."""
    layer_bytes = (WIDTH * WIDTH + WIDTH) * dtype.itemsize
    layers = max(1, round(megabytes * 2**20 / layer_bytes))
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(layers)))


@ray.remote(num_cpus=1)
class Rollout:
    """The receiving side."""

    def __init__(self, megabytes: int, dtype_name: str) -> None:
        torch.set_num_threads(1)
        self.model = make_model(megabytes, getattr(torch, dtype_name))

    def receive_packed(self, buffer: np.ndarray, index: Index) -> float:
        begin = time.perf_counter()
        copy_into(self.model, unpack(buffer, index))
        return time.perf_counter() - begin

    def receive_dict(self, state: dict[str, torch.Tensor]) -> float:
        begin = time.perf_counter()
        copy_into(self.model, state)
        return time.perf_counter() - begin

    def checksum(self) -> float:
        return float(sum(p.detach().double().sum() for p in self.model.parameters()))


def best(action: Callable[[], Any], repeats: int) -> float:
    """The shortest of several runs, in seconds; the first, which maps the pages, does not count."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    model = make_model(args.megabytes, dtype)
    state = model.state_dict()
    buffer, _ = pack(state)
    target = np.empty_like(buffer)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10 * buffer.nbytes)
    rollout = Rollout.remote(args.megabytes, args.dtype)
    received: list[float] = []

    def send_packed() -> None:
        packed, packed_index = pack(state)
        received.append(ray.get(rollout.receive_packed.remote(ray.put(packed), packed_index)))

    def send_dict() -> None:
        ray.get(rollout.receive_dict.remote(ray.put(state)))

    memcpy = best(lambda: np.copyto(target, buffer), args.repeats)
    stages = {
        "pack": best(lambda: pack(state), args.repeats),
        "ray.put": best(lambda: ray.put(buffer), args.repeats),
    }
    total = best(send_packed, args.repeats)
    stages["unpack and copy into parameters (in the actor)"] = min(received)
    as_dict = best(send_dict, args.repeats)
    expected = float(sum(p.detach().double().sum() for p in model.parameters()))
    assert ray.get(rollout.checksum.remote()) == expected, "the rollout holds other weights"
    ray.shutdown()

    size = buffer.nbytes / 1e9
    print(f"weights                 {size * 1e3:8.1f} MB in {len(state)} tensors of {args.dtype}")
    print(f"memcpy, one process     {memcpy * 1e3:8.1f} ms  {size / memcpy:6.2f} GB/s")
    for name, seconds in stages.items():
        print(f"  {name:<47} {seconds * 1e3:8.1f} ms  {size / seconds:6.2f} GB/s")
    print(f"sync, end to end        {total * 1e3:8.1f} ms  {size / total:6.2f} GB/s")
    print(f"as a dict of tensors    {as_dict * 1e3:8.1f} ms  {size / as_dict:6.2f} GB/s")
    print(f"ratio to memcpy         {memcpy / total:8.3f}  (1/3 = three copies and nothing else)")
    print(f"ratio to dict           {as_dict / total:8.2f}  (times faster)")


if __name__ == "__main__":
    main()
