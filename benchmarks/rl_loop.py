"""Frames/s of the RL loop against its own limits and against other libraries, in one run.

    pip install -r benchmarks/requirements.txt      # for the rows RLlib and SB3 only
    python benchmarks/rl_loop.py [--iterations 6] [--warm-up 2] [--only ours,sb3] [--json FILE] [key=value]

Every row is measured in a process of its own, one after the other: the same simulator, policy, number of
environments, steps, minibatches and passes (`--config`, tabletop_ppo by default). A frame is an action that a
simulator executed. Reported are medians over the iterations after the warm-up. README.md explains the rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

#: Row -> (label, modules that it needs beside rlinf-core).
ROWS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "simulator": ("(a) simulator alone, its processes", ()),
    "policy": ("(b) policy alone, one core", ()),
    "ours": ("rlinf on Ray", ()),
    "plain": ("(c) plain loop, one process", ()),
    "rllib": ("(d) RLlib PPO", ("gymnasium", "tree", "lz4")),
    "sb3": ("(e) stable-baselines3 PPO", ("stable_baselines3",)),
}
INSTALL: Final = "pip install -r benchmarks/requirements.txt"
#: The passes never stop early here: each row does the same optimizer steps.
FIXED: Final = ("algorithm.target_kl=null",)
CLI: Final = {"rlinf --help": ["--help"], "rlinf plugins list": ["plugins", "list"]}


def measure(row: str, config_name: str, overrides: list[str], iterations: int) -> dict[str, Any]:
    """One row, in this process."""
    import torch
    from rlinf.config import load_config

    config = load_config(config_name, [*overrides, *FIXED])
    cores = os.cpu_count() or 1
    if row not in ("ours", "simulator", "policy"):
        torch.set_num_threads(cores)
    if row == "sb3":
        import sb3_ppo

        return sb3_ppo.measure(config, iterations)
    if row == "rllib":
        import rllib_ppo

        return rllib_ppo.measure(config, iterations, cores)
    import rl_parts

    parts = {
        "ours": rl_parts.run,
        "simulator": rl_parts.simulator,
        "policy": rl_parts.policy,
        "plain": rl_parts.plain_loop,
    }
    return parts[row](config, iterations)


def measure_apart(row: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row in a new process; without its packages or on failure, `error` says so."""
    missing = [name for name in ROWS[row][1] if not _installed(name)]
    if missing:
        return {"error": f"not installed: {INSTALL}"}
    out, log = folder / f"{row}.json", folder / f"{row}.log"
    command = [sys.executable, __file__, "--config", args.config, "--row", row, "--json", str(out)]
    command += ["--iterations", str(args.iterations), "--warm-up", str(args.warm_up), *args.overrides]
    with log.open("w") as stream:
        status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
    if status or not out.exists():
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        return {"error": f"failed with status {status}, see above"}
    return json.loads(out.read_text())


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def summarise(result: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """Medians over the iterations after the warm-up; frames/s is the median of each iteration's own."""
    rates = [frames / s for frames, s in zip(result["frames"], result["seconds"])][warm_up:]
    medians = {
        name: statistics.median(values[warm_up:])
        for name, values in result.items()
        if name in ("frames", "seconds") or name.endswith("_s")
    }
    return {**medians, "frames_per_s": statistics.median(rates), "range": [min(rates), max(rates)]}


def limits(rows: dict[str, dict[str, Any]], cores: int) -> dict[str, dict[str, float]]:
    """What the two halves allow, in frames/s, from their times per frame (they execute about as many).

    overlap: simulator and policy (inference and update), a core each, never waiting: 1 / max(a, b).
    work: the cores share all work evenly, which no schedule can beat: cores / (a + b in core-seconds).
    on_policy: rollout and inference overlap perfectly, then comes the update on the run's ranks, as PPO
    must: 1 / (max(a at the run's parallelism, inference, (a + inference) / cores) + update).
    """
    sim, policy = rows["simulator"], rows["policy"]
    per_frame = lambda row, name: row[name] / row["frames"]  # noqa: E731
    wall, core = per_frame(sim, "seconds"), per_frame(sim, "core_s")
    inference = per_frame(policy, "inference_s")
    rollout = max(wall, inference, (core + inference) / cores)
    return {
        "overlap": {"frames_per_s": 1 / max(core, per_frame(policy, "seconds"))},
        "work": {"frames_per_s": cores / (core + per_frame(policy, "core_s"))},
        "on_policy": {"frames_per_s": 1 / (rollout + per_frame(policy, "update_run_s"))},
    }


LIMIT_LABELS: Final = {
    "overlap": "perfect overlap of (a) and (b)",
    "work": "all work spread evenly over cores",
    "on_policy": "perfect rollout, then the update",
}


def table(rows: dict[str, dict[str, Any]], bounds: dict[str, dict[str, float]]) -> list[str]:
    """At most 80 columns; the last is rlinf's frames/s divided by the row's."""
    ours = rows.get("ours", {}).get("frames_per_s")
    lines = [f"{'':<36}{'frames/s':>9}{'s/iter':>8}{'rollout':>9}{'update':>8}{'rlinf/row':>10}"]

    def line(label: str, row: dict[str, Any]) -> str:
        if "error" in row:
            return f"{label:<36}  {row['error']}"
        cells = f"{row['frames_per_s']:>9.0f}"
        for name, width in (("seconds", 8), ("rollout_s", 9), ("update_s", 8)):
            cells += f"{row[name]:>{width}.3f}" if name in row else " " * (width - 1) + "-"
        return f"{label:<36}{cells}{ours / row['frames_per_s']:>10.2f}" if ours else f"{label:<36}{cells}"

    lines += [line(ROWS[name][0], rows[name]) for name in ("ours", "simulator", "policy") if name in rows]
    lines += [line(LIMIT_LABELS[name], bound) for name, bound in bounds.items()]
    lines += [line(ROWS[name][0], rows[name]) for name in list(ROWS)[3:] if name in rows]
    return lines


def footer(rows: dict[str, dict[str, Any]], cli: dict[str, float]) -> list[str]:
    """Peak memory, weight sync, start of the command line."""
    lines = []
    for name, row in rows.items():
        if "peak_memory" in row:
            parts = [
                f"{role} {', '.join(f'{x / 2**20:.0f}' for x in sizes)}"
                for role, sizes in row["peak_memory"].items()
            ]
            lines.append(f"peak memory (MiB), {name}: " + "; ".join(parts))
    if "sync_s" in rows.get("ours", {}):
        lines.append(f"weight sync: {rows['ours']['sync_s'] * 1e3:.1f} ms an iteration")
    lines += [f"{command}: {seconds * 1e3:.0f} ms" for command, seconds in cli.items()]
    return lines


def cli_times(repeats: int = 5) -> dict[str, float]:
    """Median wall time of commands that start nothing."""
    out = {}
    for name, words in CLI.items():
        command = [sys.executable, "-m", "rlinf.cli.main", *words]
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begin)
        out[name] = statistics.median(times)
    return out


def headline(args: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> str:
    from rlinf.config import load_config

    config = load_config(args.config, args.overrides)
    calls = config.env.steps_per_rollout // config.model.num_action_chunks
    counts = sorted({row["parameters"] for row in rows.values() if "parameters" in row})
    return (
        f"{args.config}: {config.model.model_type}, {' or '.join(f'{n:,}' for n in counts)} parameters, "
        f"{os.cpu_count()} cores\n{config.env.num_envs} environments x {calls} calls x "
        f"{config.model.num_action_chunks} actions; {config.algorithm.update_epoch} passes in minibatches of "
        f"{config.actor.global_batch_size}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tabletop_ppo")
    parser.add_argument("--iterations", type=int, default=6, help="measured iterations of each row")
    parser.add_argument("--warm-up", type=int, default=2, help="iterations before them, not counted")
    parser.add_argument("--only", default=",".join(ROWS), help="rows to measure, of: " + ", ".join(ROWS))
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="configuration overrides, key=value")
    args = parser.parse_args()
    if args.row:
        result = measure(args.row, args.config, args.overrides, args.warm_up + args.iterations)
        args.json.write_text(json.dumps({**result, **summarise(result, args.warm_up), "raw": result}))
        return
    chosen = args.only.split(",")
    unknown = set(chosen) - set(ROWS)
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in [row for row in ROWS if row in chosen]:
            print(f"measuring {row} ...", file=sys.stderr, flush=True)
            rows[row] = measure_apart(row, args, Path(folder))
    halves = all("frames_per_s" in rows.get(name, {}) for name in ("simulator", "policy"))
    bounds = limits(rows, os.cpu_count() or 1) if halves else {}
    cli = cli_times()
    print("\n".join([headline(args, rows), *table(rows, bounds), *footer(rows, cli)]))
    if args.json:
        versions = {name: version(name) for name in ("rlinf-core", "torch", "ray", "numpy")}
        content = {
            "rows": rows,
            "limits": bounds,
            "cli_s": cli,
            "cores": os.cpu_count(),
            "versions": versions,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if any("failed" in row.get("error", "") for row in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
