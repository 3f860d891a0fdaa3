"""Log-probabilities and entropies of sampled tokens: `linear_log_probs` against logits in full.

    python benchmarks/linear_log_probs.py [--tokens 2048] [--vocab 150000] [--hidden 256] [--repeats 3]

Forward and backward, hidden states and output embedding trainable; each side in a process of its own, so that
peak memory is its own. Prints time and peak memory beyond the inputs and gradients, and their ratios. The
fused side multiplies by the embedding four times instead of three and passes over the logits far less often:
wide models on slow processors pay for the first (896 wide on 2 cores: x1.3 in time).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch
from rlinf.models.logprobs import entropy_from_logits, linear_log_probs, log_probs_from_logits


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ weight.t()
    return log_probs_from_logits(logits, targets), entropy_from_logits(logits)


def measure(name: str, args: argparse.Namespace, results: multiprocessing.Queue) -> None:
    """Best time of the repeats, and how much the process grew beyond inputs and their gradients."""
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, requires_grad=True)
    weight = (torch.randn(args.vocab, args.hidden) * args.hidden**-0.5).requires_grad_()
    targets = torch.randint(args.vocab, (args.tokens,))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        logp, entropy = {"fused": linear_log_probs, "plain": plain}[name](hidden, weight, targets)
        (logp.mean() + 0.01 * entropy.mean()).backward()
        times.append(time.perf_counter() - started)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    results.put((min(times), peak, logp.sum().item()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("tokens", 2048), ("vocab", 150_000), ("hidden", 256), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in ("plain", "fused"):
        results = context.Queue()
        process = context.Process(target=measure, args=(name, args, results))
        process.start()
        found[name] = results.get()
        process.join()
        seconds, peak, _ = found[name]
        print(f"{name:<6} {seconds:6.2f} s  {peak / 2**20:8.0f} MiB beyond inputs and gradients")
    (t0, m0, s0), (t1, m1, s1) = found["plain"], found["fused"]
    assert abs(s0 - s1) < 1e-3 * abs(s0), "both compute the same"
    print(f"time x{t1 / t0:.2f} of plain, memory x{m1 / m0:.2f}")


if __name__ == "__main__":
    main()
