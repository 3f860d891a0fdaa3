"""OpenVLA: batched rollout, action columns in training, and the vision towers, against the plain way.

    python benchmarks/openvla.py [--sizes demo wide] [--rows 8] [--repeats 5]

Two scaled-down models with the real vocabulary (32,064): `demo` is a model of minutes (64-px images, width
64), where calls cost more than arithmetic; `wide` has the real image size and number of patches
at width 256, where arithmetic costs most. "Plain" is what the original's code does, on the same weights and
current transformers: all blocks of both vision towers, one prompt at a time through `generate`; in training,
logits of all positions over the whole vocabulary. The results of both are compared before anything is timed.

One thread, and processor time rather than the clock's, so that other processes matter little. Peak memory is
what a process holds in addition while the pass runs, its high-water mark in /proc.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rlinf.models import get_model
from torch import Tensor
from transformers import GenerationConfig

ACTION_DIM = 7
INSTRUCTIONS = ("pick up the red cube", "open the top drawer and put the bowl inside", "touch it")
SIZES: dict[str, dict[str, Any]] = {
    "demo": {
        "hidden_size": 64,
        "image_size": [64, 64],
        "llm": {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vision_towers": [
            {"depth": 3, "dim": 48, "heads": 2, "mlp_hidden": 96, "patch_size": 8, "registers": 1}
            | {"layer_scale": True},
            {"depth": 3, "dim": 48, "heads": 2, "mlp_hidden": 96, "patch_size": 8},
        ],
    },
    "wide": {
        "hidden_size": 256,
        "llm": {"intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8},
        "vision_towers": [
            {"depth": 6, "dim": 128, "heads": 4, "mlp_hidden": 512, "registers": 4, "layer_scale": True},
            {"depth": 7, "dim": 144, "heads": 4, "mlp_hidden": 538},
        ],
    },
}


class Plain:
    """The original's way with the weights of a policy."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.llm = policy, policy.language_model
        towers = policy.hf_config.towers
        block = type(policy.vision_backbone.featurizer.blocks[0])
        self.last_blocks = [block(tower).eval() for tower in towers]
        self.generation = GenerationConfig(
            max_new_tokens=ACTION_DIM, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    def vision(self, pixels: Tensor) -> Tensor:
        """timm runs every block and hands out the second-to-last's output."""
        backbone, found = self.policy.vision_backbone, []
        towers = (backbone.featurizer, backbone.fused_featurizer)
        for tower, last, part in zip(towers, self.last_blocks, pixels.split(3, dim=1), strict=True):
            found.append(tower(part))
            prefix = 0 if tower.cls_token is None else 1 + tower.reg_token.shape[1]
            last(torch.nn.functional.pad(found[-1], (0, 0, prefix, 0)))
        return torch.cat(found, dim=-1)

    def embeds(self, inputs: dict[str, Tensor], extra: Tensor | None = None) -> Tensor:
        seen = self.policy.projector(self.vision(self.policy.pixel_values(inputs)))
        ids = inputs["input_ids"] if extra is None else torch.cat([inputs["input_ids"], extra], dim=1)
        words = self.llm.get_input_embeddings()(ids)
        return torch.cat([words[:, :1], seen, words[:, 1:]], dim=1)

    @torch.no_grad()
    def act(self, inputs: dict[str, Tensor]) -> Tensor:
        """Tokens of one unpadded prompt."""
        embeds = self.embeds(inputs)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=self.generation)

    def logprobs(self, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """Of a batch of prompts of one length, from logits of all positions and words."""
        logits = self.llm(inputs_embeds=self.embeds(inputs, tokens)).logits.float()
        logits = logits[:, -ACTION_DIM - 1 : -1]
        first = self.policy.tokens.first_id
        allowed = torch.zeros(logits.shape[-1], dtype=torch.bool)
        allowed[first : self.policy.tokens.vocab_end] = True
        logp = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        return logp.gather(-1, tokens[..., None])[..., 0]


def build(size: str) -> Any:
    torch.manual_seed(0)
    own = {"tokenizer": "words", "vocab_size": 32064, "max_prompt_tokens": 128, **SIZES[size]}
    policy = get_model({"model_type": "openvla", "action_dim": ACTION_DIM, "openvla": own}).eval()
    # With the initial weights alone all logits are alike: the words of actions are made to differ.
    with torch.no_grad():
        first, end = policy.tokens.first_id, policy.tokens.vocab_end
        policy.language_model.lm_head.weight[first:end] *= 50
    return policy


def observation(rows: int, size: str, texts: tuple[str, ...] = INSTRUCTIONS) -> dict[str, Any]:
    side = SIZES[size].get("image_size", [224])[0]
    images = np.random.default_rng(0).integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    return {"main_images": images, "task_descriptions": [texts[i % len(texts)] for i in range(rows)]}


def unpadded(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """A row as the original's processor gives it."""
    real = inputs["attention_mask"][row].bool()
    return {"images": inputs["images"][row : row + 1], "input_ids": inputs["input_ids"][row : row + 1, real]}


def best(function: Callable[[], Any], repeats: int) -> float:
    """Processor seconds of the fastest of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def rollout(size: str, rows: int, repeats: int) -> None:
    policy, obs = build(size), observation(rows, size)
    plain, inputs = Plain(policy), policy.inputs(obs)
    singles = [unpadded(inputs, row) for row in range(rows)]
    _, result = policy.predict_action_batch(obs, mode="eval", compute_values=False)
    theirs = torch.cat([plain.act(one) for one in singles])
    assert torch.equal(result["forward_inputs"]["action_tokens"], theirs), "both act alike"
    ours = best(lambda: policy.predict_action_batch(obs, mode="eval", compute_values=False), repeats)
    one_by_one = best(lambda: [plain.act(one) for one in singles], repeats)
    single = best(lambda: policy.predict_action_batch(observation(1, size), mode="eval"), repeats)
    print(f"rollout of {rows}: batched {ours:.3f} s, {rows} plain calls {one_by_one:.3f} s")
    print(f"  x{one_by_one / ours:.2f}   (one call: {single:.3f} s against {one_by_one / rows:.3f} s)")


def peak_of(function: Callable[[], Any]) -> float:
    """MiB by which the process's high-water mark exceeds what it held before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def training_pass(size: str, way: str, rows: int, repeats: int) -> tuple[float, float, float]:
    """Seconds, peak MiB, and the sum of the log-probabilities of a forward and backward pass."""
    torch.set_num_threads(1)
    policy = build(size).train()
    inputs = policy.inputs(observation(rows, size, INSTRUCTIONS[:1]))
    real = inputs["attention_mask"][0].bool()
    inputs["input_ids"], inputs["attention_mask"] = (
        inputs["input_ids"][:, real],
        inputs["attention_mask"][:, real],
    )
    shape = (rows, ACTION_DIM)
    generator = torch.Generator().manual_seed(0)
    tokens = policy.tokens.first_id + torch.randint(policy.tokens.bins, shape, generator=generator)
    plain = Plain(policy)

    def run() -> Tensor:
        if way == "plain":
            logprobs = plain.logprobs(inputs, tokens)
        else:
            logprobs = policy(forward_inputs={**inputs, "action_tokens": tokens})["logprobs"]
        logprobs.sum().backward()
        policy.zero_grad(set_to_none=True)
        return logprobs.sum().detach()

    # The first pass: later ones find the memory that it has left to the allocator.
    totals: list[Tensor] = []
    peak = peak_of(lambda: totals.append(run()))
    return best(run, repeats), peak, float(totals[0])


def training(size: str, rows: int, repeats: int) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        found = [pool.apply(training_pass, (size, way, rows, repeats)) for way in ("ours", "plain")]
    (t, m, a), (plain_t, plain_m, b) = found
    assert abs(a - b) < 1e-3 * abs(b), f"both compute the same, got {a} and {b}"
    print(f"log-probabilities of {rows}, forward and backward: {t:.3f} s and {m:.0f} MiB")
    print(f"  plain {plain_t:.3f} s and {plain_m:.0f} MiB")
    print(f"  x{plain_t / t:.2f} in time, {m / plain_m:.2f} of its memory")


@torch.no_grad()
def vision(size: str, rows: int, repeats: int) -> None:
    policy = build(size)
    plain, pixels = Plain(policy), policy.pixel_values(policy.inputs(observation(rows, size)))
    ours = best(lambda: policy.vision_backbone(pixels), repeats)
    theirs = best(lambda: plain.vision(pixels), repeats)
    saved, full = (
        1152 * (4 * 1152 + 2 * 4304) + 12 * 1024**2,
        27 * 1152 * (4 * 1152 + 2 * 4304) + 24 * 12 * 1024**2,
    )
    print(f"vision of {rows}: {ours:.3f} s, all blocks {theirs:.3f} s: {1 - ours / theirs:.1%} skipped")
    print(f"  of the published sizes {saved / full:.1%} of the blocks' weights are never multiplied")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    for name, default in (("rows", 8), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for size in args.sizes:
        print(f"--- {size}")
        rollout(size, args.rows, args.repeats)
        training(size, args.rows, args.repeats)
        vision(size, args.rows, args.repeats)


if __name__ == "__main__":
    main()
