"""Defects of how a policy is built, stored and sharded, and of action processors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rlinf.fsdp.export import export_safetensors
from torch import Tensor

from rlinf_mutants.correct import DIM, Correct
from rlinf_mutants.registry import mutant
from rlinf_mutants.results import Amending


@mutant(
    "test_building_twice_gives_equal_weights",
    also=("test_names_build_the_policy_in_another_process", "test_two_ranks_train_as_one"),
    because="no other process can build these weights; one rank trains others than two do",
)
class UnseededWeights(Correct):
    """Initial weights come from a generator without a seed."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        noise = np.random.default_rng().normal(size=(DIM, DIM)).astype(np.float32)
        with torch.no_grad():
            self.layers[0].weight.copy_(0.1 * torch.from_numpy(noise))


@mutant("test_names_build_the_policy_in_another_process")
class WeightsOfTheProcess(Correct):
    """Initial weights depend on the process: on its number, or on hash() of a string."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        with torch.no_grad():
            self.layers[0].bias.add_(1e-6 * os.getpid())


@mutant("test_instances_share_nothing")
class SharedFlag(Amending):
    """A switch for all policies of the process, which train() of any of them moves."""

    shift = 0.0

    def train(self, mode: bool = True) -> SharedFlag:
        SharedFlag.shift = 0.1 if mode else 0.0
        return super().train(mode)

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions + SharedFlag.shift, result


@mutant(
    "test_weights_survive_export_and_load",
    also=("test_weights_reach_the_rollout",),
    because="a tensor that the state dict lacks travels in neither way",
)
class HiddenTensor(Correct):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.offset = 0.1 * torch.randn(DIM)

    def feel(self, states: Tensor) -> Tensor:
        x = super().feel(states)
        return x + self.offset.to(x.dtype)


@mutant("test_save_pretrained_comes_back")
class ForgetsModelPath(Correct):
    """save_pretrained writes a checkpoint, and the builder does not read it."""

    def save_pretrained(self, folder: Path) -> None:
        export_safetensors(folder, self.state_dict())


@mutant("test_weights_reach_the_rollout")
class CopiedState(Correct):
    """state_dict() returns copies, so that nothing can be written through it."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


@mutant("test_two_ranks_train_as_one")
class WrongWrapPolicy(Correct):
    """A rule of the wrap policy matches no module."""


@mutant("test_two_ranks_train_as_one")
class ReadsAnotherUnit(Correct):
    """A weight of the action head is read outside its forward."""

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, value = super().features(inputs)
        return x, value * (1 + self.action_head.mean.weight.mean())


@mutant("test_action_processors_leave_their_input", env_types=("bench",))
class InPlaceProcessor(Correct):
    """The action processor writes into its argument."""


@mutant("test_action_processors_keep_the_shape", env_types=("bench",))
class ShapeChangingProcessor(Correct):
    """The action processor drops a dimension and does not declare it."""
