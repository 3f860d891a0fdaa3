"""The interface that every embodied policy offers to rollout, trainer, SFT and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

import torch
from torch import nn

#: How `predict_action_batch` acts: by drawing, or deterministically.
MODES: Final = ("train", "eval")


def check_mode(mode: str) -> None:
    """Raises ValueError unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}; got {mode!r}")


class ForwardType(Enum):
    """Branches of `BasePolicy.forward`; the branch `x` is the method `x_forward`."""

    DEFAULT = "default"
    SFT = "sft"
    SAC = "sac"
    SAC_Q = "sac_q"
    CROSSQ = "crossq"
    CROSSQ_Q = "crossq_q"
    IQL_ACTOR = "iql_actor"
    IQL_CRITIC = "iql_critic"
    IQL_VALUE = "iql_value"
    NFT = "nft"


class BasePolicy(nn.Module):
    """A policy: acts in `predict_action_batch`, is trained through `forward`.

    A subclass implements `predict_action_batch` and the branches it supports (`default_forward` for policy
    gradients, `sft_forward` for imitation, ...). It may inherit from another `nn.Module` as well
    (`class MyVLA(PreTrainedModel, BasePolicy)`).

    For FSDP a class may name its units: `_no_split_modules` (class names), `_no_split_names` (values of a
    module's `_fsdp_wrap_name`).
    """

    def forward(self, forward_type: ForwardType | str = ForwardType.DEFAULT, **kwargs: Any) -> dict[str, Any]:
        """Run one training branch. All training goes through here, because sharding hooks onto `forward`.

        Raises:
            ValueError: `forward_type` names no branch.
            NotImplementedError: the policy does not implement that branch.
        """
        branch = ForwardType(forward_type).value
        method = getattr(self, f"{branch}_forward", None)
        if method is None:
            raise self._unimplemented(f"{branch}_forward")
        return method(**kwargs)

    def default_forward(self, forward_inputs: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, Any]:
        """Recompute, with gradients, what `predict_action_batch` recorded.

        Args:
            forward_inputs: as in the result of `predict_action_batch`, any rows of it.

        Returns:
            logprobs: float32 [B, chunk, action_dim], of the recorded actions.
            values: float32 [B, 1], if there is a value head.
            entropy: float32 [B, chunk, action_dim] or [B, 1], in nats.
            transition_logprobs: only of a policy whose action is the end of S transitions that are to have a
            ratio of their own each (see `rlinf.algorithms.loss_over_transitions`): float32
            [B, S, chunk, action_dim], of which `logprobs` is the sum over S; recorded in `forward_inputs`
            under the same name. With it `transition_discounts` and `transition_clips`, S numbers each.
        """
        raise self._unimplemented("default_forward")

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Imitation loss of a batch of demonstrated chunks.

        Args:
            batch: the observation (as in `predict_action_batch`), `actions` [B, chunk, action_dim] float32
                and `action_is_pad` [B, chunk] bool (steps after the end of the demonstration; they do not
                count).

        Returns:
            loss: float32 scalar, a mean over the counted entries; further scalars are metrics.
        """
        raise self._unimplemented("sft_forward")

    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Act.

        Args:
            env_obs: main_images uint8 [B, H, W, 3]; states float32 [B, D]; task_descriptions list[str] of
                length B; where the environment has them, wrist_images and extra_view_images [B, K, H, W, 3].
            mode: "train" samples, "eval" is deterministic.
            compute_values: False saves the value head's work.
            generators: one per sample, so that a draw does not depend on who else is in the batch; None: the
                global generator of torch.

        Returns:
            actions float32 [B, chunk, action_dim], and a dict with prev_logprobs float32
            [B, chunk, action_dim]; prev_values float32 [B, 1] (if computed); forward_inputs: batch-first
            tensors, all that `default_forward` needs.
        """
        raise self._unimplemented("predict_action_batch")

    def prepare_rollout(self, refresh: Callable[[], bool] | None) -> None:
        """Told once, on a rollout worker, before anything is trained: what only acting needs is made here
        (another engine, compiled kernels).

        refresh: with `rollout.interruptible`, what loads weights that came since, and returns whether any
        did. It is called before each `predict_action_batch` anyway; a policy may call it within a long one
        and go on with the new weights, if it records log-probabilities as of each draw.

        Raises ValueError or ImportError, shown as the user's mistake: the policy cannot do what it is set to.
        """

    def set_global_step(self, step: int) -> None:
        """Told before each rollout: the RL iteration, for what follows a schedule (exploration noise, say).

        What training needs of it belongs into `forward_inputs`.
        """

    def _unimplemented(self, method: str) -> NotImplementedError:
        branches = [t.value for t in ForwardType if self._implements(f"{t.value}_forward")]
        return NotImplementedError(
            f"{type(self).__name__} does not implement {method}; it implements the branches "
            f"{', '.join(branches) or '(none)'}"
        )

    def _implements(self, method: str) -> bool:
        own = getattr(type(self), method, None)
        return own is not None and own is not getattr(BasePolicy, method, None)
