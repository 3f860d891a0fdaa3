"""What a subclass of the policy kit states about its model, and how the tests make things of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rlinf.config.schema import ModelConfig
from rlinf.models.embodiment.base_policy import BasePolicy
from rlinf.testing import material
from rlinf.testing.support import Support


class PolicySubject:
    """Attributes that an author sets in the subclass, and the material that follows from them."""

    #: The block `model` of a configuration, JSON-able; small enough to build within a second.
    model_config: ClassVar[Mapping[str, Any]]
    #: Capabilities that the policy does not have (see `rlinf.testing.support.CAPABILITIES`).
    supports: ClassVar[Mapping[str, Support]] = {}
    #: Dimensions of `states`, and height and width of `main_images`.
    state_dim: ClassVar[int] = 7
    image_size: ClassVar[int] = 64
    #: Distinct instructions of several lengths; the tests draw on them in turn.
    instructions: ClassVar[tuple[str, ...]] = (
        "push the red cube",
        "touch it",
        "pick up the blue block and hold it",
        "put the green cube on the red one",
    )
    #: Configuration (merged into `model_config`) that sets sampling filters: temperature, top-k, ...
    sampling_filters: ClassVar[Mapping[str, Any]] = {}
    #: Environments whose action processors for this model are tried.
    env_types: ClassVar[tuple[str, ...]] = ()
    #: Regular expressions on full names of parameters that no loss trains (a checkpoint has them, say), each
    #: with the reason.
    untrained: ClassVar[Mapping[str, str]] = {}
    #: AdamW's learning rate for overfitting one batch, and its steps.
    overfit_lr: ClassVar[float] = 3e-3
    overfit_steps: ClassVar[int] = 40
    #: Float32 results that must be equal may differ by this much; what must differ differs by more.
    atol: ClassVar[float] = 1e-5

    def config(self, **overrides: Any) -> dict[str, Any]:
        """`model_config` in float32 with these keys changed; of the plugin's subtree only those given."""
        config: dict[str, Any] = {"precision": "fp32", **self.model_config}
        for key, value in overrides.items():
            merge = isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
            config[key] = {**config[key], **value} if merge else value
        return config

    def build(self, *, seed: int = 0, awake: bool = True, **overrides: Any) -> BasePolicy:
        """The policy in evaluation mode (see `material.build`)."""
        return material.build(self.config(**overrides), seed, awake=awake)  # type: ignore[return-value]

    def observation(self, batch: int = 4, seed: int = 0) -> dict[str, Any]:
        """An observation as numpy arrays; override it for models that need other cameras."""
        return material.observation(
            batch,
            seed=seed,
            image_size=self.image_size,
            state_dim=self.state_dim,
            instructions=self.instructions,
        )

    def plain_observation(self, batch: int = 4, seed: int = 0) -> dict[str, Any]:
        """One instruction for all: what is found on it has nothing to do with padding."""
        return {**self.observation(batch, seed), "task_descriptions": [self.instructions[0]] * batch}

    def demonstrations(self, batch: int = 4, seed: int = 0) -> dict[str, Any]:
        """A batch for `sft_forward`."""
        obs = self.observation(batch, seed)
        return material.demonstrations(obs, chunk=self.chunk, action_dim=self.action_dim, seed=seed)

    @property
    def chunk(self) -> int:
        return int(self._field("num_action_chunks"))

    @property
    def action_dim(self) -> int:
        return int(self._field("action_dim"))

    @property
    def model_type(self) -> str:
        return self.model_config["model_type"]

    def has(self, capability: str) -> bool:
        """Whether the capability is not declared missing."""
        return capability not in self.supports

    def _field(self, name: str) -> Any:
        return self.model_config.get(name, ModelConfig.model_fields[name].default)
