"""Rollout and training of a small causal language model by this framework's policy and by a plain loop.

    python benchmarks/language_rl.py [--rows 32] [--prompt 32] [--answer 96] [--vocabulary 16000] [--steps 3]

The plain loop is what one writes with transformers: `generate` with sampling, then a forward over the padded
batch with full logits for the log-probabilities that the ratio needs; in training such a forward and its
backward. The policy does the same job through `predict_action_batch` and `default_forward`, once with padded
rows and once with `packing_samples`. All have the same weights, prompts, loss and optimizer.
The training batch is the same too: its answers are cut to log-normal lengths, as those of trained models are,
and the losses are compared. Every row runs in a process of its own; memory is the peak of resident memory
above that before the first step. Tokens are those of prompts and answers in training, those of answers in the
rollout; times are processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rlinf.config import load_config
from rlinf.models import get_model
from rlinf.models.language.policy import LanguagePolicy
from torch import Tensor

ROWS = ("plain", "padded", "packed")
CLIP = 0.2


def build(args: argparse.Namespace, packing: bool) -> LanguagePolicy:
    letters = "".join(chr(0x4E00 + i) for i in range(args.vocabulary))
    network = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
               "num_key_value_heads": 8, "max_position_embeddings": 1024}  # fmt: skip
    overrides = [
        f"model.num_action_chunks={args.answer}",
        f"env.steps_per_rollout={args.answer}",
        f"model.causal_lm.max_prompt_length={args.prompt}",
        f"model.causal_lm.packing_samples={json.dumps(packing)}",
        f"model.causal_lm.characters={letters}",
        *(f"model.causal_lm.config.{key}={value}" for key, value in network.items()),
    ]
    torch.manual_seed(0)
    policy = get_model(load_config("language_grpo", overrides).model)
    assert isinstance(policy, LanguagePolicy)
    return policy


def prompts(args: argparse.Namespace, policy: LanguagePolicy) -> list[str]:
    """Of half to all of the longest length."""
    rng = np.random.default_rng(0)
    letters = policy.processor.tokenizer.characters  # type: ignore[attr-defined]
    lengths = rng.integers(args.prompt // 2, args.prompt + 1, args.rows)
    return ["".join(rng.choice(list(letters), length)) for length in lengths]


def batch(args: argparse.Namespace, policy: LanguagePolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences and mask int64 [B, P+A], advantages float32 [B]: random tokens, answers of skewed lengths."""
    rng = np.random.default_rng(1)
    texts = [policy.processor.tokenizer.encode(text) for text in prompts(args, policy)]
    lengths = np.clip(rng.lognormal(np.log(args.answer / 6), 0.8, args.rows), 2, args.answer).astype(int)
    lengths[0] = args.answer
    ids = torch.from_numpy(rng.integers(6, args.vocabulary, (args.rows, args.prompt + args.answer)))
    mask = torch.zeros_like(ids)
    for row, (text, length) in enumerate(zip(texts, lengths.tolist())):
        mask[row, args.prompt - len(text) : args.prompt + length] = 1
    return ids * mask, mask, torch.from_numpy(rng.normal(size=args.rows)).float()


def surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """PPO's clipped loss, a mean over the answers' tokens [B, A]."""
    ratio = (logprobs - old).exp()
    gain = torch.min(ratio * advantages[:, None], ratio.clamp(1 - CLIP, 1 + CLIP) * advantages[:, None])
    return -(gain * mask).sum() / mask.sum()


def plain_logprobs(model: Any, ids: Tensor, mask: Tensor, answer: int) -> Tensor:
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, :-1]
    logprobs = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logprobs[:, -answer:]


def rollout(args: argparse.Namespace, policy: LanguagePolicy, plain: bool) -> Callable[[int], int]:
    """A step: answers to all prompts with their log-probabilities; returns their tokens."""
    texts = prompts(args, policy)
    model = policy.actor.model

    @torch.no_grad()
    def ours(step: int) -> int:
        generators = [torch.Generator().manual_seed(1000 * step + i) for i in range(len(texts))]
        actions, _ = policy.predict_action_batch({"task_descriptions": texts}, generators=generators)
        return int((actions >= 0).sum())

    @torch.no_grad()
    def theirs(step: int) -> int:
        rows = [policy.processor.tokenizer.encode(text) for text in texts]
        ids = torch.tensor([[0] * (args.prompt - len(row)) + row for row in rows])
        mask = (ids > 0).long()
        torch.manual_seed(step)
        whole = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=args.answer, do_sample=True, top_k=0,
            top_p=1.0, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        answers = whole[:, args.prompt :]
        whole_mask = torch.cat([mask, (answers > 0).long()], 1)
        plain_logprobs(model, whole, whole_mask, answers.shape[1])
        return int((answers > 0).sum())

    return theirs if plain else ours


def training(args: argparse.Namespace, policy: LanguagePolicy, plain: bool) -> Callable[[int], int]:
    """A step: forward, backward, AdamW; returns the batch's tokens. The first loss is kept."""
    ids, mask, advantages = batch(args, policy)
    model = policy.actor.model
    answers = mask[:, -args.answer :]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    old = torch.full(answers.shape, float(np.log(1 / args.vocabulary)))
    policy.train()

    def step(_: int) -> int:
        if plain:
            logprobs = plain_logprobs(model, ids, mask, args.answer)
        else:
            out = policy.default_forward({"sequences": ids, "attention_mask": mask})
            logprobs = out["logprobs"].squeeze(-1)
        loss = surrogate(logprobs, old, advantages, answers)
        args.losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return int(mask.sum())

    return step


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One row of one phase, in this process."""
    torch.set_num_threads(args.threads)
    policy = build(args, packing=args.row == "packed").eval()
    phase = {"rollout": rollout, "training": training}[args.phase](args, policy, args.row == "plain")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    rates = []
    for number in range(args.steps + 1):
        started = time.process_time()
        tokens = phase(number)
        rates.append(tokens / (time.process_time() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The first step warms up.
    return {
        "tokens_per_s": max(rates[1:]),
        "peak_mb": (peak - before) / 2**20,
        "loss": (args.losses or [0.0])[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"rows": 32, "prompt": 32, "answer": 96, "vocabulary": 16_000, "steps": 3, "threads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--phase", choices=("rollout", "training"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.losses = []
    if args.row:
        print(json.dumps(measure(args)))
        return
    print(f"{'':10}{'':10}{'tokens/s':>10}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for phase in ("rollout", "training"):
        results = {}
        for row in ROWS if phase == "training" else ROWS[:2]:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--phase", phase]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            results[row] = json.loads(done.stdout.splitlines()[-1])
        plain = results["plain"]
        for row, one in results.items():
            assert abs(one["loss"] - plain["loss"]) < 1e-4, "all compute the same"
            speed, memory = one["tokens_per_s"], one["peak_mb"]
            print(
                f"{phase:10}{row:10}{speed:10.0f}{speed / plain['tokens_per_s']:8.2f}"
                f"{memory:10.0f}{memory / plain['peak_mb']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
