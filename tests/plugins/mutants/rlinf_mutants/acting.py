"""Defects of what actions depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlinf_mutants.correct import STATE, Correct
from rlinf_mutants.registry import mutant
from rlinf_mutants.results import Amending


@mutant("")
class CorrectPolicy(Correct):
    """Nothing: the policy that the mutants are made of."""


@mutant(
    "test_batch_equals_singles",
    also=(
        "test_any_rows_can_be_recomputed",
        "test_padding_changes_nothing",
        "test_sft_loss_is_a_mean_over_counted_steps",
        "test_two_ranks_train_as_one",
    ),
    because="any other rest of the batch changes a sample: other rows or prompts, padding, a rank's share",
)
class BatchStatistics(Correct):
    """Features are centred over the batch."""

    def layer(self, i: int, x: Tensor) -> Tensor:
        return super().layer(i, x - 0.1 * x.mean(0))


@mutant(
    "test_padding_changes_nothing",
    also=("test_two_ranks_train_as_one",),
    because="a rank pads to the longest prompt of its own share",
)
class UnmaskedMean(Correct):
    """The mean over words counts padding."""

    def read(self, tokens: Tensor) -> Tensor:
        return self.words(tokens[:, : int((tokens != 0).sum(1).max())]).mean(1)


@mutant("test_eval_is_deterministic")
class EvalSamples(Amending):
    """Noise is drawn whenever generators are given, whatever the mode is."""

    def predict_action_batch(
        self, env_obs: dict[str, Any], mode: str = "train", *args: Any, generators: Any = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        mode = "train" if generators is not None else mode
        return super().predict_action_batch(env_obs, mode, *args, generators=generators, **kwargs)


@mutant(
    "test_calls_leave_no_trace",
    also=("test_draws_come_from_the_given_generators", "test_draws_are_per_sample"),
    because="calls in mode train are compared, and each moves the statistics for the next",
)
class RunningStatistics(Correct):
    """States are normalised by statistics that every call in mode train moves."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.running_mean = np.zeros(STATE, np.float32)

    def predict_action_batch(self, env_obs: dict[str, Any], mode: str = "train", **kwargs: Any) -> Any:
        states = env_obs["states"]
        normal = {**env_obs, "states": states - self.running_mean}
        if mode == "train":
            self.running_mean = 0.9 * self.running_mean + 0.1 * states.mean(0)
        return super().predict_action_batch(normal, mode, **kwargs)


@mutant("test_image_changes_the_action")
class Blind(Correct):
    """A constant image goes into the network."""

    def see(self, images: Tensor) -> Tensor:
        return super().see(torch.full_like(images, 200))


@mutant("test_state_changes_the_action")
class Numb(Correct):
    """A constant state goes into the network."""

    def feel(self, states: Tensor) -> Tensor:
        return super().feel(torch.ones_like(states))


@mutant("test_instruction_changes_the_action")
class Deaf(Correct):
    """One prompt for all instructions."""

    def tokens(self, texts: Any) -> Tensor:
        return super().tokens(["what should the robot do"] * len(texts))


@mutant(
    "test_draws_come_from_the_given_generators",
    also=("test_draws_are_per_sample", "test_global_generators_are_left_alone"),
    because="a draw from the global generator is not the sample's own, and moves the global one",
)
class GlobalNoise(Correct):
    """Noise comes from torch's global generator."""

    def predict_action_batch(self, *args: Any, generators: Any = None, **kwargs: Any) -> Any:
        return super().predict_action_batch(*args, **kwargs)


@mutant("test_draws_are_per_sample")
class OneGenerator(Correct):
    """The first generator draws for the whole batch."""

    def predict_action_batch(self, *args: Any, generators: Any = None, **kwargs: Any) -> Any:
        if generators is not None:
            seeds = torch.randint(2**31, (len(generators),), generator=generators[0]).tolist()
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return super().predict_action_batch(*args, generators=generators, **kwargs)


@mutant("test_global_generators_are_left_alone")
class MovesGlobalGenerator(Amending):
    """An unused draw from numpy's global generator."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        np.random.rand()
        return actions, result
