"""What a run leaves for people: the learning curve as a picture and a summary of one screen.

Both read only the run folder's own files, so they can be made again at any time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; each has `phase` (sft | rl | eval), `step` and its metrics."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_curve(run_dir: Path) -> Path:
    """Plot success over environment frames, and the SFT loss where there is one, into `curve.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(run_dir)
    sft = [(row["step"], row["sft/loss"]) for row in rows if "sft/loss" in row]
    train = [
        (row["env/frames"], row["rollout/success_rate"]) for row in rows if "rollout/success_rate" in row
    ]
    held_out = [(row["env/frames"], row["eval/success_rate"]) for row in rows if "eval/success_rate" in row]
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    columns = 2 if sft and (train or held_out) else 1
    figure, axes = plt.subplots(1, columns, figsize=(5.5 * columns, 3.6), squeeze=False)
    if sft:
        axis = axes[0, 0]
        axis.plot(*zip(*sft), color="#57606a", linewidth=1.2)
        axis.set(title="Warm start by SFT on expert demonstrations", xlabel="optimizer steps", ylabel="loss")
    if train or held_out:
        axis = axes[0, -1]
        if train:
            axis.plot(*zip(*train), color="#8cb4e8", label="training, sampled actions")
        if held_out:
            axis.plot(*zip(*held_out), "o-", color="#0b5cad", label="held-out seeds, deterministic")
        if (blind := summary.get("success_blind")) is not None:
            axis.axhline(blind, color="#cf222e", linestyle="--", label="instruction hidden, after RL")
        axis.set(title="Success by RL on the simulator", xlabel="environment frames", ylabel="success rate")
        axis.set_ylim(0, 1.02)
        axis.legend(loc="lower right", frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path = run_dir / "curve.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def summary_text(run_dir: Path) -> str:
    """The one-screen summary of a finished run, from `summary.json`; at most 80 columns wide."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    lines = [f"Run finished: {run_dir}", ""]
    names = {
        "success_before_rl": "before RL",
        "success_after_sft": "after SFT",
        "success_after_rl": "after RL",
        "success_blind": "instruction hidden",
    }
    shown = {label: summary[key] for key, label in names.items() if summary.get(key) is not None}
    if shown:
        episodes = summary.get("eval_episodes")
        lines.append(f"Success on {episodes} held-out episodes")
        lines += [f"  {label:<19} {value:6.1%}  {'█' * round(value * 40)}" for label, value in shown.items()]
        lines.append("")
    lines += [f"  {name:<19} {value}" for name, value in _facts(summary)]
    files = [name for name in _FILES if (run_dir / name).exists()]
    lines += ["", "In the run folder"] + [f"  {name:<19} {_FILES[name]}" for name in files]
    return "\n".join(lines)


_FILES = {
    "curve.png": "learning curve",
    "before_after.gif": "the policy at work, before and after RL",
    "summary.json": "these figures, versions, plugin plan",
    "config.yaml": "the resolved configuration",
    "checkpoints": "weights and optimizer",
    "tensorboard": "`tensorboard --logdir` of this folder",
}


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if "wall_s" in summary:
        facts.append(("wall time", f"{summary['wall_s']:.0f} s"))
    if summary.get("env_frames"):
        facts.append(("environment frames", f"{summary['env_frames']:,}"))
    if summary.get("env_errors"):
        facts.append(("simulator errors", f"{summary['env_errors']} (environments were restarted)"))
    if "seed" in summary:
        facts.append(("seed", str(summary["seed"])))
    return facts
