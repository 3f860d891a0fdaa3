"""What all built-in policies share: features in, Gaussian action chunks and values out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf.models.embodiment.base_policy import BasePolicy, check_mode
from rlinf.models.embodiment.config import PolicyConfig
from rlinf.models.embodiment.heads import GaussianHead
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.embodiment.sampling import gaussian_entropy, gaussian_logprobs, randn_per_sample


class GaussianPolicy(BasePolicy):
    """A subclass builds its trunk, calls `make_heads`, and implements `inputs` and `features`."""

    action_head: GaussianHead
    value_head: ValueHead | None

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.sft_loss = _SFT_LOSSES[config.sft_loss]

    def make_heads(
        self, config: PolicyConfig, dim: int, *, action_dim: int, steps: int, add_value_head: bool
    ) -> None:
        """Heads on features of width `dim`; each feature of the action head stands for `steps` actions."""
        self.action_head = GaussianHead(
            dim,
            action_dim,
            steps=steps,
            init_log_std=config.init_log_std,
            state_dependent_std=config.state_dependent_std,
        )
        self.value_head = ValueHead(dim, config.value_hidden) if add_value_head else None

    def inputs(self, env_obs: dict[str, Any]) -> dict[str, Tensor]:
        """The observation as batch-first tensors, on the policy's device, compact (images stay uint8)."""
        raise NotImplementedError

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features of the action head [B, T, d] and of the value head [B, d]."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `BasePolicy`. Mode "eval" takes the mean. `prev_values` is absent without a value head."""
        check_mode(mode)
        inputs = self.inputs(env_obs)
        action_features, value_features = self.features(inputs)
        mean, log_std = self.action_head(action_features)
        actions = mean
        if mode == "train":
            actions = mean + log_std.exp() * randn_per_sample(mean.shape, generators, mean.device)
        result: dict[str, Any] = {
            "prev_logprobs": gaussian_logprobs(actions, mean, log_std),
            "forward_inputs": {**inputs, "action": actions},
        }
        if compute_values and self.value_head is not None:
            result["prev_values"] = self.value_head(value_features)
        return actions, result

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        action_features, value_features = self.features(forward_inputs)
        mean, log_std = self.action_head(action_features)
        out = {
            "logprobs": gaussian_logprobs(forward_inputs["action"], mean, log_std),
            "entropy": gaussian_entropy(log_std),
        }
        if self.value_head is not None:
            out["values"] = self.value_head(value_features)
        return out

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Imitation of `batch["actions"]`; metric `l1`: mean absolute error of the mean action."""
        action_features, _ = self.features(self.inputs(batch))
        mean, log_std = self.action_head(action_features)
        target = _to_tensor(batch["actions"], mean.device).float()
        if target.shape != mean.shape:
            raise ValueError(f"actions: expected {tuple(mean.shape)}, got {tuple(target.shape)}")
        weight = (
            (~_to_tensor(batch["action_is_pad"], mean.device).bool()).unsqueeze(-1).expand_as(mean).float()
        )
        count = weight.sum().clamp(min=1)
        return {
            "loss": (self.sft_loss(target, mean, log_std) * weight).sum() / count,
            "l1": ((target - mean).abs() * weight).sum().detach() / count,
        }

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def image_input(self, env_obs: dict[str, Any], key: str = "main_images") -> Tensor:
        """uint8 [B, H, W, 3] on the policy's device."""
        images = _to_tensor(_get(env_obs, key, self), self.device)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
            raise ValueError(f"{key}: expected uint8 [B, H, W, 3], got {images.dtype} {tuple(images.shape)}")
        return images

    def state_input(self, env_obs: dict[str, Any], state_dim: int) -> Tensor:
        """float32 [B, state_dim] on the policy's device."""
        states = _to_tensor(_get(env_obs, "states", self), self.device).float()
        if states.dim() != 2 or states.shape[-1] != state_dim:
            raise ValueError(
                f"states: expected [B, {state_dim}] (the model's state_dim), got {tuple(states.shape)}"
            )
        return states


def _get(env_obs: dict[str, Any], key: str, policy: nn.Module) -> Any:
    if env_obs.get(key) is None:
        has = ", ".join(env_obs) or "nothing"
        raise ValueError(f"{type(policy).__name__} needs {key!r} in the observation; it has {has}")
    return env_obs[key]


def _to_tensor(value: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(value).to(device)


#: `sft_loss` -> elementwise loss of (target, mean, log_std).
_SFT_LOSSES: Final = {
    "l1": lambda target, mean, log_std: (target - mean).abs(),
    "mse": lambda target, mean, log_std: (target - mean).square(),
    "huber": lambda target, mean, log_std: F.huber_loss(mean, target, reduction="none", delta=0.1),
    "nll": lambda target, mean, log_std: -gaussian_logprobs(target, mean, log_std),
}
