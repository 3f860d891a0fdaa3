"""`rlinf convert`: a training checkpoint as a folder of weights in the layout of the model's family."""

from __future__ import annotations

from pathlib import Path

from rlinf.cluster.errors import UserError
from rlinf.config import Config
from rlinf.fsdp.checkpoint import CheckpointError, verify
from rlinf.fsdp.convert import LoraMode, convert
from rlinf.plugins import Plan
from rlinf.runners.train import make_plan

#: Who made the weights, beside them.
PLAN_FILE = "rlinf_plan.json"


def convert_checkpoint(
    checkpoint: Path,
    target: Path,
    *,
    lora: LoraMode = "merge",
    max_shard_bytes: int = 5 * 10**9,
    allow_plugin_drift: bool = False,
) -> list[Path]:
    """Write the weights of `checkpoint` (a folder `checkpoints/step_N`) below `target`; returns the files.

    Raises:
        UserError: no good checkpoint there, other plugins than it was made with, or the target is taken.
    """
    try:
        metadata = verify(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    config = Config.model_validate(metadata["config"])
    plan = make_plan(config)
    differences = Plan.from_json(metadata["plan"]).differences(plan)
    if differences and not allow_plugin_drift:
        raise UserError(
            f"{checkpoint} was made with other plugins:\n  " + "\n  ".join(differences) + "\n"
            "Convert it all the same with --allow-plugin-drift."
        )
    try:
        files = convert(checkpoint, config.model, target, lora=lora, max_shard_bytes=max_shard_bytes)
    except ValueError as error:
        raise UserError(f"converting {checkpoint}: {error}") from error
    (target / PLAN_FILE).write_text(metadata["plan"] + "\n", encoding="utf-8")
    return [*files, target / PLAN_FILE]
