"""DexVLA through the whole loop on Ray: SFT, RL on the denoising chain, checkpoint, resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rlinf.cli.main import main

SMALL = (
    "runner.max_steps={steps} sft.max_steps=2 sft.batch_size=8 sft.expert_episodes=3 env.num_envs=4 "
    "env.steps_per_rollout=8 env.eval.num_episodes=2 env.eval.blind=false actor.micro_batch_size=8 "
    "actor.global_batch_size=8 runner.report=false algorithm.critic_warmup_steps=0 runner.resume={resume} "
    "cluster.component_placement.actor=0 cluster.component_placement.env=0 runner.output_dir={out}"
)


def train(out: Path, steps: int, resume: str) -> int:
    options = SMALL.format(steps=steps, resume=resume, out=out).split()
    return main(["train", "--config", "dexvla_tabletop_ppo", *options])


def test_it_trains_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, 1, "false") == 0
    assert train(out, 2, "true") == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    sft = [row for row in rows if row["phase"] == "sft"]
    rl = [row for row in rows if row["phase"] == "rl"]
    assert [row["step"] for row in rl] == [1, 2]
    assert all(row["sft/llm_loss"] > 0 and row["sft/action_loss"] > 0 for row in sft)
    # The first minibatch of the first update has ratio 1; none diverges.
    assert all(math.isfinite(row["train/loss"]) and 0.5 < row["train/ratio"] < 2 for row in rl)
