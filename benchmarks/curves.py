"""Learning curves of one configuration under several seeds, from finished run folders: a picture and a table.

python benchmarks/curves.py runs/seed0 runs/seed1 runs/seed2 --title "tabletop_ppo" --output curves.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rlinf.runners.report import read_metrics

COLUMNS = {
    "success_before_rl": "before RL",
    "success_after_sft": "after SFT",
    "success_after_rl": "after RL",
    "success_blind": "hidden",
}


def summaries(folders: list[Path]) -> list[dict[str, Any]]:
    return [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a row per seed, then mean and range."""
    columns = {key: label for key, label in COLUMNS.items() if runs[0].get(key) is not None}
    lines = [
        "| seed | " + " | ".join(columns.values()) + " | environment frames | wall time |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for run in runs:
        cells = [f"{run[key]:.1%}" for key in columns]
        lines.append(
            f"| {run['seed']} | " + " | ".join(cells) + f" | {run['env_frames']:,} | {run['wall_s']:.0f} s |"
        )
    values = {key: [run[key] for run in runs] for key in columns}
    means = [f"{statistics.mean(v):.1%} ({min(v):.1%} to {max(v):.1%})" for v in values.values()]
    return "\n".join([*lines, "| **mean (range)** | " + " | ".join(means) + " | | |"])


def plot(folders: list[Path], runs: list[dict[str, Any]], title: str, output: Path) -> None:
    """Held-out success over environment frames, a line per seed, and their mean where all were evaluated."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    curves = []
    for folder, run in zip(folders, runs):
        rows = [row for row in read_metrics(folder) if "eval/success_rate" in row]
        curves.append({row["step"]: (row["env/frames"], row["eval/success_rate"]) for row in rows})
        axis.plot(*zip(*curves[-1].values()), "o-", alpha=0.45, markersize=3, label=f"seed {run['seed']}")
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    mean = [[statistics.mean(curve[step][i] for curve in curves) for step in steps] for i in (0, 1)]
    axis.plot(*mean, color="black", linewidth=2, label="mean")
    if runs[0].get("success_blind") is not None:
        blind = statistics.mean(run["success_blind"] for run in runs)
        axis.axhline(blind, color="#cf222e", linestyle="--", label="instruction hidden, after RL")
    axis.set(title=title, xlabel="environment frames", ylabel="success on held-out seeds", ylim=(0, 1.02))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center right", frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    runs = summaries(args.folders)
    print(table(runs))
    plot(args.folders, runs, args.title, args.output)


if __name__ == "__main__":
    main()
