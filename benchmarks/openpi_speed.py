"""pi0 and pi0.5: sampling and training step against openpi's own loop and transformers' `sample_actions`.

    python benchmarks/openpi_speed.py [--shape short] [--repeats 5] [--threads 2] [--batch 2] [--memory]
                                      [--compile]

All contenders have the same weights and get the same observation, as LIBERO gives it: two cameras of three
(openpi computes the third and masks it; transformers is given two), a prompt padded to pi0's 48 or pi0.5's
200 tokens, 50 actions, 10 steps. Results are compared first. Their turns alternate; printed are the shortest
turn by the wall clock and by the process's own processor time (which other programs disturb less), the median
of the turns' ratios, and what each needs in memory beyond its weights, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpi_loop
import torch
from rlinf.fsdp.export import export_safetensors
from rlinf_openpi import checkpoint
from rlinf_openpi.architecture import Architecture, GemmaSizes, VisionSizes
from rlinf_openpi.build import compile_blocks
from rlinf_openpi.network.pi0 import Observation, Pi0
from rlinf_openpi.network.sampling import Denoiser, euler_times, expert_step, sample_actions
from torch import Tensor

#: An eighth of the published widths; `short` has fewer layers, and half of that of the language model's MLPs.
SHAPES = {
    "short": Architecture(
        vision=VisionSizes(width=144, depth=4, mlp_dim=538, num_heads=2),
        vlm=GemmaSizes(width=256, mlp_dim=1024),
        expert=GemmaSizes(width=128, mlp_dim=512),
        depth=4,
        head_dim=32,
        vocab_size=2048,
    ),
    "deep": Architecture(
        vision=VisionSizes(width=144, depth=27, mlp_dim=538, num_heads=2),
        vlm=GemmaSizes(width=256, mlp_dim=2048),
        expert=GemmaSizes(width=128, mlp_dim=512),
        depth=18,
        head_dim=32,
        vocab_size=2048,
    ),
}
HORIZON, ACTION_DIM, STEPS, PROMPT = 50, 32, 10, 14
Action = Callable[[], Tensor]


class Problem:
    """One network and one observation, and what each contender does with them."""

    def __init__(self, sizes: Architecture, pi05: bool, batch: int) -> None:
        torch.manual_seed(0)
        self.net = Pi0(sizes, action_dim=ACTION_DIM, pi05=pi05)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        length = 200 if pi05 else 48
        mask = torch.arange(length)[None].expand(batch, -1) < (60 if pi05 else PROMPT)
        self.obs = Observation(
            images=torch.randint(0, 256, (batch, 3, 224, 224, 3), dtype=torch.uint8),
            tokens=torch.randint(4, 2000, (batch, length)) * mask,
            token_mask=mask,
            state=None if pi05 else torch.randn(batch, ACTION_DIM),
            image_masks=torch.tensor([[True, True, False]]).expand(batch, -1),
        )
        self.noise = torch.randn(batch, HORIZON, ACTION_DIM)
        self.actions, self.time = torch.randn_like(self.noise), torch.rand(batch)
        self._compiled: Any = None

    def sample(self) -> Tensor:
        with torch.no_grad():
            prefix = self.net.prefix(self.obs)
            *_, actions = sample_actions(self.net, prefix, self.obs.state, self.noise, STEPS)
        return actions

    def sample_compiled(self) -> Tensor:
        """With the option `compile: default`."""
        if self._compiled is None:
            self._compiled = torch.compile(expert_step)
        times, delta = euler_times(STEPS)
        with torch.no_grad():
            prefix, x = self.net.prefix(self.obs), self.noise
            step = {"step": self._compiled, "functional": True}
            denoiser = Denoiser(self.net, prefix, self.obs.state, times, HORIZON, **step)
            for k in range(STEPS):
                x = x + delta * self.net.velocity(denoiser.hidden(x, k))
        return x

    def sample_openpi(self) -> Tensor:
        return openpi_loop.sample(self.net, self.obs, self.noise, STEPS)

    def train(self) -> Tensor:
        return self._step(self.net.flow_loss(self.obs, self.actions, self.noise, self.time))

    def train_openpi(self) -> Tensor:
        return self._step(openpi_loop.loss(self.net, self.obs, self.actions, self.noise, self.time))

    def _step(self, loss: Tensor) -> Tensor:
        self.net.zero_grad()
        loss.mean().backward()
        return loss.detach()


class Transformers:
    """`PI0ForConditionalGeneration` with the weights of a problem."""

    def __init__(self, problem: Problem) -> None:
        from transformers import PI0Config, PI0ForConditionalGeneration

        sizes, vision = problem.net.sizes, problem.net.sizes.vision
        gemma = {"num_hidden_layers": sizes.depth, "num_attention_heads": sizes.num_heads}
        gemma |= {"num_key_value_heads": sizes.num_kv_heads, "head_dim": sizes.head_dim}
        gemma |= {"model_type": "gemma"}
        image_token = sizes.vocab_size - 1
        config = PI0Config(
            vlm_config={
                "model_type": "paligemma",
                "text_config": {
                    "vocab_size": sizes.vocab_size,
                    "hidden_size": sizes.vlm.width,
                    "intermediate_size": sizes.vlm.mlp_dim,
                    **gemma,
                },
                "vision_config": {
                    "model_type": "siglip_vision_model",
                    "vision_use_head": False,
                    "hidden_size": vision.width,
                    "intermediate_size": vision.mlp_dim,
                    "num_hidden_layers": vision.depth,
                    "num_attention_heads": vision.num_heads,
                    "patch_size": vision.patch_size,
                    "image_size": vision.image_size,
                },
                "projection_dim": sizes.vlm.width,
                "image_token_id": image_token,
            },
            dit_config={
                "hidden_size": sizes.expert.width,
                "intermediate_size": sizes.expert.mlp_dim,
                **gemma,
            },
            chunk_size=HORIZON,
            loss_reduction="none",
        )
        with tempfile.TemporaryDirectory() as folder:
            export_safetensors(folder, checkpoint.to_layout(problem.net.state_dict(), "transformers"), 10**9)
            config.save_pretrained(folder)
            self.model = PI0ForConditionalGeneration.from_pretrained(folder).eval()
        obs = problem.obs
        batch = len(obs.images)
        places = torch.full((batch, 2 * vision.tokens), image_token)
        self.problem = problem
        self.inputs = {
            "state": obs.state,
            "input_ids": torch.cat([places, obs.tokens], dim=1),
            "attention_mask": torch.cat([torch.ones_like(places), obs.token_mask.long()], dim=1),
            "pixel_values": obs.images[:, :2].permute(0, 1, 4, 2, 3).float() / 127.5 - 1,
            "pixel_attention_mask": torch.ones(batch, 2, dtype=torch.bool),
        }

    def sample(self) -> Tensor:
        return self.model.sample_actions(noise=self.problem.noise, num_steps=STEPS, **self.inputs)

    def train(self) -> Tensor:
        p = self.problem
        self.model.zero_grad()
        out = self.model(noise=p.noise, timestep=p.time, actions=p.actions, **self.inputs)
        out.loss.mean().backward()
        return out.loss.detach()


def contenders(args: argparse.Namespace, pi05: bool, only: str | None = None) -> dict[str, dict[str, Action]]:
    """{job: {contender: action}}; `only` leaves the others unbuilt."""
    problem = Problem(SHAPES[args.shape], pi05, args.batch)
    jobs: dict[str, dict[str, Action]] = {
        "sampling": {"rlinf": problem.sample, "openpi": problem.sample_openpi},
        "training step": {"rlinf": problem.train, "openpi": problem.train_openpi},
    }
    if args.compile:
        compiled = Problem(SHAPES[args.shape], pi05, args.batch)
        compile_blocks(compiled.net)
        jobs["sampling"]["rlinf, compiled"] = compiled.sample_compiled
        jobs["training step"]["rlinf, compiled"] = compiled.train
    if not pi05 and only in (None, "transformers"):
        theirs = Transformers(problem)
        jobs["sampling"]["transformers"] = theirs.sample
        jobs["training step"]["transformers"] = theirs.train
    return jobs


def measured(actions: dict[str, Action], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """{contender: (wall, processor) milliseconds of each turn}, the first left out; turns alternate."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            wall, own = time.perf_counter(), time.process_time()
            action()
            found[name].append(((time.perf_counter() - wall) * 1e3, (time.process_time() - own) * 1e3))
    return {name: turns[1:] for name, turns in found.items()}


def ratio(turns: list[tuple[float, float]], own: list[tuple[float, float]], clock: int) -> float:
    """The median over the turns, in which both met the same load."""
    return statistics.median(theirs[clock] / ours[clock] for theirs, ours in zip(turns, own, strict=True))


def peak(action: Action) -> float:
    """Megabytes of resident memory that the process has at most while it runs, beyond what it had before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of building and importing
    before = _status("VmRSS")
    action()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of /proc/self/status, in kB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_elsewhere(args: argparse.Namespace, *job: str) -> float:
    options = [f"--shape={args.shape}", f"--threads={args.threads}", f"--batch={args.batch}"]
    done = subprocess.run(
        [sys.executable, __file__, *options, "--peak", *job], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def compare(results: dict[str, Tensor]) -> None:
    for name, result in results.items():
        gap = float((result - results["rlinf"]).abs().max())
        assert gap < 1e-3, f"{name} computes something else: {gap}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="short")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="measure memory, too (a process each)")
    parser.add_argument("--compile", action="store_true", help="also with the option compile: default")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        model, job, name = args.peak
        print(peak(contenders(args, model == "pi0.5", name)[job][name]))
        return
    sizes = SHAPES[args.shape]
    heading = (
        f"batch {args.batch}, {args.threads} threads; {sizes.depth} layers of width {sizes.vlm.width} (MLP "
        f"{sizes.vlm.mlp_dim}) and {sizes.expert.width}, {sizes.num_heads} heads of {sizes.head_dim};\n"
        f"vision {sizes.vision.width}x{sizes.vision.depth}, 224 px, 2 of 3 cameras; "
        f"{HORIZON} actions, {STEPS} steps"
    )
    print(heading)
    for model in ("pi0", "pi0.5"):
        for job, actions in contenders(args, model == "pi0.5").items():
            compare({name: action() for name, action in actions.items()})
            turns = measured(actions, args.repeats)
            own = turns["rlinf"]
            for name, taken in turns.items():
                wall, cpu = (min(turn[clock] for turn in taken) for clock in (0, 1))
                memory = " " * 11
                if args.memory and "compiled" not in name:  # the compiler would be what is measured
                    memory = f"{peak_elsewhere(args, model, job, name):6.0f} MB  "
                by_wall, by_cpu = (ratio(taken, own, clock) for clock in (0, 1))
                versus = f"{by_wall:.2f}x wall, {by_cpu:.2f}x processor"
                print(
                    f"{model:6} {job:14} {name:15} {wall:7.0f} ms {cpu:7.0f} ms {memory}{versus}", flush=True
                )


if __name__ == "__main__":
    main()
