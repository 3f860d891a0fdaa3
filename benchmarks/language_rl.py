"""Rollout and training of a small causal language model: this framework's policy, a plain loop, and trl.

    pip install trl==1.16.0 -c constraints.txt
    python benchmarks/language_rl.py [--rows 32] [--prompt 32] [--answer 96] [--vocabulary 16000] [--steps 3]

rollout: answers with their log-probabilities. The plain loop is what one writes with transformers:
`generate` with sampling, then a forward over the padded batch with full logits. The policy does it through
`predict_action_batch`: once with transformers' `generate` under it ("batched"), where all rows go on until
the last one ends, as it is ("policy"), with continuous batching, and, where it is installed, with vLLM, whose
memory holds a cache of 256 MB and is counted before that is made. The end token's probability is made such
that answers have geometric lengths, a quarter of the longest on average.

training: forward, backward and optimizer on one batch whose answers have log-normal lengths, plain, with
padded rows and with `packing_samples`; the losses are compared.

iteration: rollout, reward, advantages within groups and one training step, as a whole: trl's `GRPOTrainer`
without KL and the policy.

All have the same weights, prompts and optimizer. Every row runs in a process of its own; memory is the peak
of resident memory above that before the first step. Tokens are those of prompts and answers in training, else
those of answers; times are processor seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rlinf.config import load_config
from rlinf.models import get_model
from rlinf.models.language.generation import generate_batch
from rlinf.models.language.policy import LanguagePolicy
from torch import Tensor

ROWS = {
    "rollout": ("plain", "batched", "policy", *(["vllm"] if importlib.util.find_spec("vllm") else [])),
    "training": ("plain", "padded", "packed"),
    "iteration": ("trl", "padded", "packed"),
}
CLIP, GROUP = 0.2, 4


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
        *(["model.causal_lm.vllm={kv_cache_memory_bytes: 268435456}"] if args.row == "vllm" else []),
        *(f"model.causal_lm.config.{key}={value}" for key, value in network.items()),
    ]
    torch.manual_seed(0)
    policy = get_model(load_config("language_grpo", overrides).model)
    assert isinstance(policy, LanguagePolicy)
    end_by_chance(policy.actor.model, probability=4 / args.answer)
    return policy


@torch.no_grad()
def end_by_chance(model: Any, probability: float) -> None:
    """Give the end token about the same logit everywhere, so that answers of random weights end."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding[:, 0] = 1.0
    state = model.model(torch.arange(6, 106)[None]).last_hidden_state[..., 0].mean()
    head[:, 0] = 0
    head[1] = 0
    head[1, 0] = math.log(probability * len(head)) / state


def prompts(args: argparse.Namespace, policy: LanguagePolicy) -> list[str]:
    """Of half to all of the longest length, each as often as its group is large."""
    rng = np.random.default_rng(0)
    letters = policy.processor.tokenizer.characters  # type: ignore[attr-defined]
    lengths = rng.integers(args.prompt // 2, args.prompt + 1, args.rows // GROUP)
    return ["".join(rng.choice(list(letters), length)) for length in lengths for _ in range(GROUP)]


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


def rollout(args: argparse.Namespace, policy: LanguagePolicy) -> Callable[[int], int]:
    """A step: answers to all prompts with their log-probabilities; returns their tokens."""
    texts = prompts(args, policy)
    model = policy.actor.model
    if args.row == "batched":
        policy.actor.generate = lambda ids, mask, generators, config: generate_batch(  # type: ignore[method-assign]
            model, ids, mask, generators, config, {}
        )

    @torch.no_grad()
    def ours(step: int) -> int:
        actions, _ = policy.predict_action_batch({"task_descriptions": texts}, generators=draws(args, step))
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

    return theirs if args.row == "plain" else ours


def draws(args: argparse.Namespace, step: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * step + i) for i in range(args.rows)]


def training(args: argparse.Namespace, policy: LanguagePolicy) -> Callable[[int], int]:
    """A step: forward, backward, AdamW; returns the batch's tokens. The first loss is kept."""
    ids, mask, advantages = batch(args, policy)
    model = policy.actor.model
    answers = mask[:, -args.answer :]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    old = torch.full(answers.shape, float(np.log(1 / args.vocabulary)))
    policy.train()

    def step(_: int) -> int:
        if args.row == "plain":
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


def reward(text: str) -> float:
    """Of which both rewards are made: something that differs from answer to answer."""
    return sum(map(ord, text)) % 7 / 7


def iteration(args: argparse.Namespace, policy: LanguagePolicy) -> Callable[[int], int]:
    """A step: rollout, rewards, advantages, training step; returns the answers' tokens."""
    texts = prompts(args, policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)

    def step(number: int) -> int:
        with torch.no_grad():
            obs = {"task_descriptions": texts}
            actions, result = policy.predict_action_batch(obs, generators=draws(args, number))
        ids = actions[..., 0].long()
        answers = [policy.processor.decode([i for i in row if i >= 0]) for row in ids.tolist()]
        rewards = torch.tensor([reward(text) for text in answers]).view(-1, GROUP)
        spread = rewards.std(1, keepdim=True) + 1e-4
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread).flatten()
        logprobs = policy.default_forward(result["forward_inputs"])["logprobs"]
        old = result["prev_logprobs"]
        loss = surrogate(logprobs.squeeze(-1), old.squeeze(-1), advantages, ids >= 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return int((ids >= 0).sum())

    return step


def trl_rates(args: argparse.Namespace, policy: LanguagePolicy) -> list[float]:
    """Tokens per second of each step of trl's trainer."""
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    characters = policy.processor.tokenizer.characters  # type: ignore[attr-defined]
    vocabulary = {f"<{i}>": i for i in range(6)} | {c: 6 + i for i, c in enumerate(characters)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<5>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<0>", eos_token="<1>", unk_token="<5>"
    )
    rates: list[float] = []
    tokens: list[int] = []

    def judged(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [reward(text) for text in completions]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            rates.append(tokens[-1] / (time.process_time() - self.started))

    with tempfile.TemporaryDirectory() as folder:
        options = GRPOConfig(
            output_dir=folder, max_steps=args.steps + 1, per_device_train_batch_size=args.rows,
            num_generations=GROUP, max_completion_length=args.answer, learning_rate=1e-6, beta=0.0,
            temperature=1.0, loss_type="grpo", bf16=False, gradient_checkpointing=False, use_cpu=True,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=policy.actor.model,
            reward_funcs=judged,
            args=options,
            train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(args, policy)[::GROUP]]),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return rates


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One row of one phase, in this process."""
    torch.set_num_threads(args.threads)
    policy = build(args, packing=args.row in ("packed", "policy")).eval()
    if args.row == "trl":
        import trl  # noqa: F401

        before = resident()
        rates = trl_rates(args, policy)
    else:
        phases = {"rollout": rollout, "training": training, "iteration": iteration}
        phase = phases[args.phase](args, policy)
        before, rates = resident(), []
        for number in range(args.steps + 1):
            started = time.process_time()
            tokens = phase(number)
            rates.append(tokens / (time.process_time() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The first step warms up.
    return {
        "tokens_per_s": statistics.median(rates[1:]),
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
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--phase", choices=ROWS, help="this phase alone")
    args = parser.parse_args()
    args.losses = []
    if args.row:
        print(json.dumps(measure(args)))
        return
    print(f"{'':10}{'':10}{'tokens/s':>10}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for phase in [args.phase] if args.phase else ROWS:
        results = {}
        for row in ROWS[phase]:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--phase", phase]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            results[row] = json.loads(done.stdout.splitlines()[-1])
        first = results[ROWS[phase][0]]
        for row, one in results.items():
            assert abs(one["loss"] - first["loss"]) < 1e-4, "all compute the same"
            speed, memory = one["tokens_per_s"], one["peak_mb"]
            print(
                f"{phase:10}{row:10}{speed:10.0f}{speed / first['tokens_per_s']:8.2f}"
                f"{memory:10.0f}{memory / first['peak_mb']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
