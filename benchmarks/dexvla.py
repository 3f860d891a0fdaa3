"""DexVLA: sampling actions and loading samples, against the way in which the original does each.

    python benchmarks/dexvla.py [--size S] [--horizon 16] [--episodes 4] [--steps 100] [--items 200]

Sampling: ten denoising steps of ScaleDP for a batch, modulations computed once, against a loop that calls
the whole network at every step for one sample at a time (the original's batch is 1). Same weights, same
noise; the results are compared. Loading: samples of three cameras and an action chunk from the same HDF5
files in the same random order, against an access per item that opens the file, reads all actions and each
camera's frame, resizes it and collects garbage. Both in one process, one thread.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from rlinf_dexvla.chain import Chain
from rlinf_dexvla.ddim import Schedule, denoise
from rlinf_dexvla.hdf5.reader import open_aloha
from rlinf_dexvla.prompt import resize
from rlinf_dexvla.scaledp import SIZES, ScaleDP

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
DIM, HEIGHT, WIDTH, SEEN = 14, 480, 640, (240, 320)
CHUNK = 50


def best(function: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of the fastest of some calls: both ways run in one thread and wait for nothing."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.no_grad()
def sampling(size: str, horizon: int) -> None:
    torch.manual_seed(0)
    depth, width, heads = SIZES[size]
    head = ScaleDP(
        cond_dim=1536,
        state_dim=DIM,
        action_dim=DIM,
        horizon=horizon,
        depth=depth,
        width=width,
        num_heads=heads,
    )
    for parameter in head.parameters():  # adaLN-zero would make every block the identity
        parameter.add_(torch.randn_like(parameter) * 0.01)
    chain = Chain(schedule=Schedule(), trained=1, eta=1.0, min_std=0.1)

    def loop(noise: torch.Tensor, cond: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        alphas, afters = chain.schedule.levels(torch.arange(len(chain.schedule.timesteps)))
        rows = []
        for x, c, s in zip(noise.split(1), cond.split(1), states.split(1)):
            for i, t in enumerate(chain.schedule.timesteps):
                x = denoise(x, head(x, torch.tensor([t]), c, s), alphas[i], afters[i]).mean
            rows.append(x)
        return torch.cat(rows)

    for batch in (1, 8, 16, 32):
        given = torch.randn(batch, horizon, DIM), torch.randn(batch, 1536), torch.randn(batch, DIM)
        ours = chain.deterministic(head, given[1], given[2], given[0])[-1]
        gap = float((ours - loop(*given)).abs().max())
        fast = best(partial(chain.deterministic, head, given[1], given[2], given[0]))
        slow = best(partial(loop, *given))
        print(
            f"sampling, ScaleDP-{size}, batch {batch}: {fast * 1e3:.0f} ms, the loop {slow * 1e3:.0f} ms: "
            f"{slow / fast:.2f}x (results differ by at most {gap:.1g})"
        )


def record(folder: Path, episodes: int, steps: int) -> None:
    """Files as the original's: uncompressed frames, contiguous."""
    rng = np.random.default_rng(0)
    for number in range(episodes):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            file["action"] = rng.normal(size=(steps, DIM))
            file["language_raw"] = [b"fold the shirt"]
            file["observations/qpos"] = rng.normal(size=(steps, DIM))
            file["observations/qvel"] = rng.normal(size=(steps, DIM))
            for camera in CAMERAS:
                images = rng.integers(0, 256, (steps, HEIGHT, WIDTH, 3), dtype=np.uint8)
                file[f"observations/images/{camera}"] = images


def loading(episodes: int, steps: int, items: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record(folder, episodes, steps)
        rng = np.random.default_rng(1)
        order = list(zip(rng.integers(0, episodes, items).tolist(), rng.integers(0, steps, items).tolist()))
        dataset = open_aloha(name)
        keys = [f"observations/images/{camera}" for camera in CAMERAS]

        def ours() -> None:
            for episode, step in order:
                frames = np.minimum(np.arange(step, step + CHUNK), steps - 1)
                dataset.read(episode, frames, ["action"])
                found = dataset.read(episode, [step], ["observations/qpos", *keys])
                dataset.tasks(episode, [step])
                resize(torch.from_numpy(np.concatenate([found[key] for key in keys])), SEEN)

        def original(collects: bool = True) -> None:
            for episode, step in order:
                with h5py.File(folder / f"episode_{episode}.hdf5", "r") as file:
                    file["language_raw"][0].decode()
                    actions = file["action"][()]
                    file["observations/qpos"][step], file["observations/qvel"][step]
                    images = [file[key][step] for key in keys]
                padded = np.zeros((steps, DIM), np.float32)
                padded[: steps - step] = actions[step:]
                stacked = [np.asarray(Image.fromarray(i).resize(SEEN[::-1], Image.BILINEAR)) for i in images]
                torch.from_numpy(np.stack(stacked)), torch.from_numpy(padded[:CHUNK])
                if collects:
                    gc.collect()

        ours()
        before = resident()
        ours()
        grown = resident() - before
        fast, slow, without = best(ours), best(original), best(lambda: original(False))
        print(
            f"loading: {items / fast:.0f} samples/s, the original's access {items / slow:.0f}: "
            f"{slow / fast:.1f}x ({without / fast:.1f}x without its garbage collection); "
            f"memory grew by {grown / 1e6:.1f} MB in the second epoch"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S", help="of ScaleDP (default: S)")
    parser.add_argument("--horizon", type=int, default=16, help="steps of a chunk (default: 16)")
    parser.add_argument("--episodes", type=int, default=4, help="files to record (default: 4)")
    parser.add_argument("--steps", type=int, default=100, help="steps of an episode (default: 100)")
    parser.add_argument("--items", type=int, default=200, help="samples to load (default: 200)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sampling(options.size, options.horizon)
    loading(options.episodes, options.steps, options.items)


if __name__ == "__main__":
    main()
