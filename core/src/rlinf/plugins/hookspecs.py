"""The hooks that a plugin's module may implement, and the markers for them.

A module behind an entry point of `rlinf.models` implements `rlinf_model_spec`, one behind `rlinf.envs`
`rlinf_env_spec`, one behind `rlinf.rewards` `rlinf_reward_spec`; the others are open to every plugin of the
run. An implementation may leave out arguments that it does not need, and must not name others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from rlinf.plugins.specs import ActionProcessorSpec, DatasetFormatSpec, EnvSpec, ModelSpec, RewardSpec

hookspec = pluggy.HookspecMarker("rlinf")
hookimpl = pluggy.HookimplMarker("rlinf")


@hookspec(firstresult=True)
def rlinf_model_spec(model_type: str) -> ModelSpec | None:
    """The spec of `model_type`. Called only on the module behind that entry point of `rlinf.models`."""


@hookspec(firstresult=True)
def rlinf_env_spec(env_type: str) -> EnvSpec | None:
    """The spec of `env_type`. Called only on the module behind that entry point of `rlinf.envs`."""


@hookspec(firstresult=True)
def rlinf_reward_spec(reward_type: str) -> RewardSpec | None:
    """The spec of `reward_type`. Called only on the module behind that entry point of `rlinf.rewards`."""


@hookspec
def rlinf_action_processors() -> Iterable[ActionProcessorSpec]:  # type: ignore[empty-body]
    """Action processors that this plugin contributes, for its own or for others' models and environments.

    They apply in runs that use this plugin: as model, as environment, or through `plugins.load`.
    """


@hookspec
def rlinf_dataset_formats() -> Iterable[DatasetFormatSpec]:  # type: ignore[empty-body]
    """Dataset formats that this plugin can read or write, for its own or for others' models.

    They are there in runs that use this plugin: as model, as environment, or through `plugins.load`.
    """


@hookspec
def rlinf_worker_started(role: str, rank: int) -> None:
    """A worker is ready. `role`: "env", "rollout", "actor" or "driver"; `rank` counts from 0 within it."""


@hookspec
def rlinf_step_ended(step: int, metrics: Mapping[str, float]) -> None:
    """A training step ended on the driver. `step` counts from 0; `metrics` is what was logged for it."""
