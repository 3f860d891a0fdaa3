"""What `rlinf fsdp-plan` says: the wrap plan of a configuration's model with estimates, as data and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from rlinf.config import Config
from rlinf.config.schema import FsdpConfig
from rlinf.fsdp.estimate import RankBytes, estimate
from rlinf.fsdp.meta import build_on_meta
from rlinf.fsdp.wrap import WrapPlan, get_fsdp_wrap_policy
from rlinf.plugins import get_host
from rlinf.plugins.discovery import MODELS


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A parameter without its values."""

    #: torch's name of the dtype, such as "bfloat16".
    dtype: str
    shape: tuple[int, ...]
    numel: int
    nbytes: int
    trainable: bool


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """A plan and what there is to know about it without weights."""

    model_type: str
    #: Distribution and version of the plugin.
    plugin: str
    #: Class of the root.
    cls: str
    parameters: dict[str, Tensor]
    fsdp_config: FsdpConfig
    is_lora: bool
    plan: WrapPlan
    estimates: tuple[RankBytes, ...]
    #: What is not as the configuration says (weights that are not here).
    remarks: tuple[str, ...]

    @property
    def remainder(self) -> dict[str, Tensor]:
        """Parameters of no unit."""
        return {name: self.parameters[name] for name in self.plan.remainder}

    def as_json(self) -> dict[str, Any]:
        """Everything, with sizes in bytes and elements."""
        tensors = self.parameters.values()
        return {
            "model": {"model_type": self.model_type, "plugin": self.plugin, "class": self.cls},
            "parameters": {
                "numel": sum(tensor.numel for tensor in tensors),
                "bytes": sum(tensor.nbytes for tensor in tensors),
                "trainable": sum(tensor.numel for tensor in tensors if tensor.trainable),
                "dtypes": sorted({tensor.dtype for tensor in tensors}),
            },
            "fsdp_config": self.fsdp_config.model_dump(mode="json"),
            "units": [
                {
                    "name": unit.name,
                    "class": unit.cls,
                    "rule": unit.rule,
                    "numel": unit.numel,
                    "bytes": unit.nbytes,
                    "parameters": list(unit.parameters),
                }
                for unit in self.plan.units
            ],
            "root": {
                "numel": sum(tensor.numel for tensor in self.remainder.values()),
                "bytes": self.plan.remainder_bytes,
                "parameters": [{"name": name, **asdict(item)} for name, item in self.remainder.items()],
            },
            "rules": [asdict(match) for match in self.plan.matches],
            "ranks": [{**asdict(row), "total": row.total} for row in self.estimates],
            "digest": self.plan.digest,
            "remarks": list(self.remarks),
        }


def plan_report(config: Config, world_sizes: Sequence[int]) -> PlanReport:
    """Build the configuration's model on the meta device, resolve its wrap plan, estimate bytes per rank.

    Raises:
        PluginError: the builder cannot work on the meta device, or the plugin is unknown or broken.
        ValueError: a wrap rule does not fit the model (`get_fsdp_wrap_policy`), or the compute dtype is
            refused (`estimate`).
    """
    name, fsdp_config = config.model.model_type, config.actor.fsdp_config
    model, remarks = build_on_meta(config.model)
    found = get_host().select(MODELS, name)
    plan = get_fsdp_wrap_policy(fsdp_config, model, get_host().model_spec(name).wrap_policy)
    return PlanReport(
        model_type=name,
        plugin=f"{found.distribution} {found.version}".rstrip(),
        cls=type(model).__name__,
        parameters=_tensors(model),
        fsdp_config=fsdp_config,
        is_lora=config.model.is_lora,
        plan=plan,
        estimates=tuple(estimate(model, plan, fsdp_config, size) for size in world_sizes),
        remarks=remarks,
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: Tensor(
            dtype=str(p.dtype).removeprefix("torch."),
            shape=tuple(p.shape),
            numel=p.numel(),
            nbytes=p.numel() * p.element_size(),
            trainable=p.requires_grad,
        )
        for name, p in model.named_parameters()
    }
