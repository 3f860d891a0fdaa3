"""What the laws are tried on: policies with awake weights, observations, generators, recorded batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

#: Spread of the noise on every weight. Layers that start at zero (a last layer, an adapter) would hide what
#: flows into them.
AWAKENING: Final = 0.02


def build(model_config: Mapping[str, Any], seed: int, *, awake: bool = True) -> nn.Module:
    """The policy of a block `model`, in evaluation mode; `seed` determines the weights.

    awake: add a little noise to all weights. The caller's global generator is left as it was.
    """
    from rlinf.models import get_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = get_model(dict(model_config))
    if awake:
        stir(policy, seed)
    return policy.eval()


def stir(module: nn.Module, seed: int, names: Sequence[str] | None = None) -> None:
    """Add noise of `AWAKENING` to all floating-point parameters (or those of these names), in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point() and (names is None or name in names):
                noise = torch.randn(parameter.shape, generator=generator) * AWAKENING
                parameter.add_(noise.to(parameter))


def observation(
    batch: int, *, seed: int, image_size: int, state_dim: int, instructions: Sequence[str]
) -> dict[str, Any]:
    """main_images uint8 [B, S, S, 3], states float32 [B, D], task_descriptions: the instructions in turn."""
    rng = np.random.default_rng(seed)
    return {
        "main_images": rng.integers(0, 256, (batch, image_size, image_size, 3), dtype=np.uint8),
        "states": rng.normal(size=(batch, state_dim)).astype(np.float32),
        "task_descriptions": [instructions[i % len(instructions)] for i in range(batch)],
    }


def rows(batch: Mapping[str, Any], index: Sequence[int]) -> dict[str, Any]:
    """These rows of a dictionary of arrays, tensors and lists."""
    return {
        key: [value[i] for i in index] if isinstance(value, list) else value[list(index)]
        for key, value in batch.items()
    }


def generators(batch: int, seed: int = 0) -> list[torch.Generator]:
    """One generator per sample; sample i has the seed `seed + i`."""
    return [torch.Generator().manual_seed(seed + i) for i in range(batch)]


def act(
    policy: nn.Module,
    obs: Mapping[str, Any],
    mode: str = "eval",
    draws: Sequence[torch.Generator] | None = None,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Any]]:
    """`predict_action_batch` on a copy of the observation, with `draws` as generators; `seed` is that of the
    global generator, which the caller finds as it was."""
    given: dict[str, Any] = {} if draws is None else {"generators": list(draws)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.no_grad():
            return policy.predict_action_batch(copy.deepcopy(dict(obs)), mode=mode, **given)  # type: ignore[operator]


def recorded(forward_inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs as the trainer gets them: by way of numpy, where bfloat16 becomes float32."""
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().clone()
        for name, value in forward_inputs.items()
    }


def recompute(policy: nn.Module, forward_inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`default_forward` of recorded inputs, by way of `forward`."""
    return policy(forward_inputs=recorded(forward_inputs))


def demonstrations(obs: Mapping[str, Any], *, chunk: int, action_dim: int, seed: int) -> dict[str, Any]:
    """A batch for `sft_forward`: the observation with actions in [-0.5, 0.5] and no padded step."""
    batch = len(obs["task_descriptions"])
    generator = torch.Generator().manual_seed(seed)
    return {
        **{key: torch.from_numpy(x) if isinstance(x, np.ndarray) else list(x) for key, x in obs.items()},
        "actions": torch.rand(batch, chunk, action_dim, generator=generator) - 0.5,
        "action_is_pad": torch.zeros(batch, chunk, dtype=torch.bool),
    }


def sft_loss(policy: nn.Module, batch: Mapping[str, Any], seed: int = 0) -> Tensor:
    """`sft_forward`'s loss on a copy of the batch; a loss that draws noise draws the same for one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return policy(forward_type="sft", batch=copy.deepcopy(dict(batch)))["loss"]
