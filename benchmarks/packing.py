"""Training steps of an actor on sequences of skewed lengths: rows packed into one against rows padded.

    python benchmarks/packing.py [--rows 16] [--longest 512] [--steps 3]

Lengths are log-normal, as those of answers are: most are short, one is long. Prints tokens/s and the ratio.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from rlinf.models.language.actor import ActorLanguage
from transformers import LlamaConfig, LlamaForCausalLM


def batch(rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(longest / 8), 0.8, rows), 4, longest).astype(int)
    lengths[0] = longest
    mask = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
    return torch.from_numpy(rng.integers(3, 1000, (rows, longest))) * mask, mask


def tokens_per_s(packing: bool, ids: torch.Tensor, mask: torch.Tensor, steps: int) -> tuple[float, float]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
        )
    )
    actor = ActorLanguage(model, packing_samples=packing)
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        total = actor(ids, ids.shape[1] - 1, mask).logprobs.sum()
        total.backward()
        times.append(time.perf_counter() - started)
    return int(mask.sum()) / min(times[1:]), total.item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rows", 16), ("longest", 512), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    ids, mask = batch(args.rows, args.longest)
    print(f"{args.rows} rows, {int(mask.sum())} tokens, {mask.float().mean():.0%} of the padded batch")
    padded, a = tokens_per_s(False, ids, mask, args.steps)
    packed, b = tokens_per_s(True, ids, mask, args.steps)
    assert abs(a - b) < 1e-3 * abs(a), "both compute the same"
    print(f"padded {padded:8.0f} tokens/s\npacked {packed:8.0f} tokens/s  x{packed / padded:.2f}")


if __name__ == "__main__":
    main()
