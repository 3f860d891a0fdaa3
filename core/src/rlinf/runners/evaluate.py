"""`rlinf eval`: a checkpoint on held-out episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlinf.cluster.errors import UserError
from rlinf.config import Config, can_film
from rlinf.runners.progress import TrainingProgress
from rlinf.runners.train import guarded, make_plan, saved_plan


def run_eval(
    checkpoint: Path,
    *,
    episodes: int | None = None,
    video: Path | None = None,
    blind: bool = False,
    allow_plugin_drift: bool = False,
) -> int:
    """Evaluate a checkpoint with its own configuration; prints the result as JSON. Returns the exit status.

    episodes: how many held-out episodes (null: as configured). video: where to write a GIF of the first ones.
    """
    return guarded(
        lambda: print(
            json.dumps(
                evaluate_checkpoint(
                    checkpoint,
                    episodes=episodes,
                    video=video,
                    blind=blind,
                    allow_plugin_drift=allow_plugin_drift,
                ),
                indent=1,
            )
        )
    )


def evaluate_checkpoint(
    checkpoint: Path,
    *,
    episodes: int | None = None,
    video: Path | None = None,
    blind: bool = False,
    allow_plugin_drift: bool = False,
) -> dict[str, Any]:
    """As `run_eval`; returns success_rate, episodes, by_instruction, mean_length.

    Raises:
        UserError: no good checkpoint there, or other plugins than it was made with.
    """
    from rlinf.fsdp.checkpoint import CheckpointError, verify
    from rlinf.runners.embodied import EmbodiedRunner
    from rlinf.runners.session import session

    try:
        metadata = verify(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    try:
        config = Config.model_validate(metadata.get("config"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "config"
        raise UserError(
            f"{checkpoint / 'metadata.json'}: the configuration in it is not one of this version: {key}: "
            f"{first['msg']}"
        ) from None
    if not config.has_simulator:
        raise UserError(
            f"{checkpoint} was trained without a simulator (no block env), so there is nowhere to evaluate it"
        )
    if video is not None and not can_film(config):
        raise UserError(f"--video: env_type {config.env.env_type!r} shows no pictures; leave --video out")
    plan = make_plan(config)
    differences = saved_plan(checkpoint, metadata).differences(plan)
    if differences and not allow_plugin_drift:
        raise UserError(
            f"{checkpoint} was made with other plugins:\n  " + "\n  ".join(differences) + "\n"
            "Evaluate it all the same with --allow-plugin-drift."
        )
    with TrainingProgress() as progress, session(config, plan, checkpoint) as processes:
        processes.actor.call("load", checkpoint.absolute())
        runner = EmbodiedRunner(processes)
        runner.sync_weights()
        total = episodes or config.env.eval.num_episodes
        progress.phase("evaluation", total)
        result = runner.evaluate(num_episodes=total, blind=blind, progress=progress.update)
        if video is not None:
            _write_video(video, runner.film(min(4, total)))
    return {
        "checkpoint": str(checkpoint),
        "success_rate": result.success_rate,
        "episodes": total,
        "mean_length": result.mean_length,
        "by_instruction": result.by_instruction(),
        "env_errors": sum(result.errors.values()),
    }


def _write_video(path: Path, films: list[dict[str, Any]]) -> None:
    from rlinf.runners.video import Clip, write_gif

    write_gif(path, {"policy": [Clip(**film) for film in films]})
