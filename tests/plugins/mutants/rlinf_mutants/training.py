"""Defects of gradients, of the SFT loss, and under LoRA."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from rlinf.testing import Support
from torch import Tensor, nn

from rlinf_mutants.correct import DIM, Correct
from rlinf_mutants.registry import mutant


@mutant("test_gradient_reaches_every_trainable_parameter")
class DetachedState(Correct):
    """The state's encoder is cut off from the gradient."""

    def feel(self, states: Tensor) -> Tensor:
        return super().feel(states).detach()


@mutant(
    "test_no_gradient_reaches_frozen_parameters",
    also=("test_lora_freezes_the_base",),
    because="the base of adapters is frozen as well",
)
class ThawsInForward(Correct):
    """Every forward pass makes all parameters trainable."""

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.requires_grad_(True)
        return super().features(inputs)


class OwnSftLoss(Correct):
    """A correct policy whose loss a subclass changes."""

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        mean, _ = self.action_head(self.features(self.inputs(batch))[0])
        error = (mean - batch["actions"]).abs().mean(-1)
        return {"loss": self.reduce(error, ~batch["action_is_pad"])}

    def reduce(self, error: Tensor, counted: Tensor) -> Tensor:
        return (error * counted).sum() / counted.sum().clamp(min=1)


@mutant("test_sft_loss_is_a_finite_scalar")
class DoubleLoss(OwnSftLoss):
    """The loss is float64."""

    def reduce(self, error: Tensor, counted: Tensor) -> Tensor:
        return super().reduce(error, counted).double()


@mutant("test_sft_loss_falls")
class CutLoss(OwnSftLoss):
    """The loss is made anew from its number, without the graph."""

    def reduce(self, error: Tensor, counted: Tensor) -> Tensor:
        return torch.tensor(super().reduce(error, counted).item(), requires_grad=True)


@mutant(
    "test_sft_ignores_padded_steps",
    also=("test_sft_loss_is_a_mean_over_counted_steps", "test_sft_of_padding_alone_is_zero"),
    because="a loss that counts padding has neither the mean of the counted steps nor 0 for none",
)
class CountsPadding(OwnSftLoss):
    """action_is_pad is not looked at."""

    def reduce(self, error: Tensor, counted: Tensor) -> Tensor:
        return error.mean()


@mutant("test_sft_loss_is_a_mean_over_counted_steps")
class MeanOverAllSteps(OwnSftLoss):
    """The masked loss is divided by the number of all steps."""

    def reduce(self, error: Tensor, counted: Tensor) -> Tensor:
        return (error * counted).mean()


@mutant("test_sft_of_padding_alone_is_zero")
class MeanOfNothing(OwnSftLoss):
    """The mean over no step is NaN."""

    def reduce(self, error: Tensor, counted: Tensor) -> Tensor:
        return error[counted].mean()


@mutant("test_lora_freezes_the_base")
class ThawsInTrain(Correct):
    """train() makes all parameters trainable."""

    def train(self, mode: bool = True) -> ThawsInTrain:
        if mode:
            self.requires_grad_(True)
        return super().train(mode)


@mutant("test_lora_keeps_new_heads_trainable")
class UnmarkedHead(Correct):
    """The value head does not say that it is one (`_is_policy_head`)."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.value_head = nn.Linear(DIM, 1)

    def predict_action_batch(self, *args: Any, **kwargs: Any) -> Any:
        actions, result = super().predict_action_batch(*args, **kwargs)
        return actions, {**result, "prev_values": result["prev_values"].float()}

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        out = super().default_forward(forward_inputs)
        return {**out, "values": out["values"].float()}


@mutant(
    "test_lora_adapters_act",
    also=("test_lora_merges_back", "test_two_ranks_train_as_one"),
    because="merging makes the adapters act; and a sharded weight can only be read inside its unit's forward",
)
class PastTheAdapter(Correct):
    """Layers' weights are used without calling the layers."""

    def layer(self, i: int, x: Tensor) -> Tensor:
        return F.linear(x, self.layers[i].weight, self.layers[i].bias)


@mutant("test_lora_merges_back")
class HalfAdapted(Correct):
    """A layer is used twice, once without its adapter."""

    def layer(self, i: int, x: Tensor) -> Tensor:
        layer = self.layers[i]
        return layer(x) + getattr(layer, "base_layer", layer)(x)


@mutant(
    "test_lora_starts_as_the_plain_model",
    also=("test_lora_merges_back",),
    because="merging takes the adapters, and with them the change, away again",
)
class CountsItsParameters(Correct):
    """Features are scaled by a number that adapters change: that of the parameters."""

    def see(self, images: Tensor) -> Tensor:
        return super().see(images) * len(list(self.parameters()))


@mutant(
    "test_lora_freezes_the_base",
    also=(
        "test_lora_keeps_new_heads_trainable",
        "test_lora_starts_as_the_plain_model",
        "test_lora_adapters_act",
        "test_lora_merges_back",
    ),
    because="without a layer to adapt there is no model under LoRA at all",
)
class WrongLoraTargets(Correct):
    """The targets in the ModelSpec match no layer."""


@mutant("test_declared_gaps_are_gaps", supports={"lora": Support.no("nobody has tried it")})
class FalseDeclaration(Correct):
    """LoRA works, but is declared missing."""
