"""What lies between raw data and the network: normalisation, relative actions, resizing, the prompt's text.

Pure functions of arrays; arithmetic follows the dtype of the input (float64 gives openpi's numbers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from rlinf.data.stats import NormStats
from torch import Tensor

#: openpi adds it to every divisor.
EPSILON: Final = 1e-6


def normalize(x: Any, stats: NormStats, method: str) -> Any:
    """[..., D] by "zscore" or "quantile" (to [-1, 1]); statistics may be longer than D. "none" leaves x."""
    if method == "none":
        return x
    size = x.shape[-1]
    if method == "zscore":
        mean, std = (_like(value[..., :size], x) for value in (stats.mean, stats.std))
        return (x - mean) / (std + EPSILON)
    low, high = (_like(value[..., :size], x) for value in _quantiles(stats))
    return (x - low) / (high - low + EPSILON) * 2 - 1


def unnormalize(x: Any, stats: NormStats, method: str) -> Any:
    """The inverse, of [..., D] with statistics of D or fewer dimensions.

    As in openpi, dimensions without statistics have mean 0 and deviation 1 under "zscore" (so that they are
    multiplied by 1 + 1e-6) and stay as they are under "quantile".
    """
    if method == "none":
        return x
    extra = x.shape[-1] - stats.mean.shape[-1]
    if method == "zscore":
        mean = _like(np.pad(stats.mean, (0, extra)), x)
        return x * (_like(np.pad(stats.std, (0, extra), constant_values=1.0), x) + EPSILON) + mean
    low, high = (_like(value, x) for value in _quantiles(stats))
    known = x.shape[-1] - extra
    scaled = (x[..., :known] + 1) / 2 * (high - low + EPSILON) + low
    if extra == 0:
        return scaled
    parts = (scaled, x[..., known:])
    return torch.cat(parts, dim=-1) if isinstance(x, Tensor) else np.concatenate(parts, axis=-1)


def _quantiles(stats: NormStats) -> tuple[np.ndarray, np.ndarray]:
    if stats.q01 is None or stats.q99 is None:
        raise ValueError(
            "the normalisation statistics have no q01 and q99, which this data configuration needs"
        )
    return stats.q01, stats.q99


def _like(value: np.ndarray, x: Any) -> Any:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device) if isinstance(x, Tensor) else value


def bool_mask(spec: Sequence[int]) -> np.ndarray:
    """[6, -1] -> six times True, once False."""
    return np.concatenate([np.full(abs(count), count > 0) for count in spec])


def to_relative(actions: Any, state: Any, mask: np.ndarray) -> Any:
    """Actions [..., T, D] minus the state [..., S] where the mask [M] is true, M <= D."""
    return actions - _offset(actions, state, mask)


def to_absolute(actions: Any, state: Any, mask: np.ndarray) -> Any:
    """The inverse of `to_relative`."""
    return actions + _offset(actions, state, mask)


def _offset(actions: Any, state: Any, mask: np.ndarray) -> Any:
    """[..., 1, D]: the state where the mask is true, else 0."""
    size, dims = min(len(mask), state.shape[-1]), actions.shape[-1]
    if mask[size:].any():
        raise ValueError(
            f"delta_mask makes {int(mask.sum())} dimensions relative to the state, which has {size}"
        )
    state = state[..., :size]
    if isinstance(actions, Tensor):
        relative = torch.where(torch.as_tensor(mask[:size], device=state.device), state, 0.0)
        return F.pad(relative, (0, dims - size))[..., None, :]
    chosen = np.where(mask[:size], state, 0.0)
    return np.pad(chosen, [(0, 0)] * (chosen.ndim - 1) + [(0, dims - size)])[..., None, :]


def pad_to(x: Any, size: int) -> Any:
    """[..., D] with zeros up to [..., size]."""
    missing = size - x.shape[-1]
    if missing < 0:
        raise ValueError(f"a vector of {x.shape[-1]} dimensions does not fit into max_action_dim {size}")
    if isinstance(x, Tensor):
        return F.pad(x, (0, missing))
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def resize_with_pad(images: Tensor, size: int) -> Tensor:
    """uint8 [B, H, W, 3] -> uint8 [B, size, size, 3], undistorted, black around.

    Bilinear with antialiasing as in Pillow, which rounds (halves up) after the columns and again after the
    rows.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images
    ratio = max(width / size, height / size)
    new_height, new_width = int(height / ratio), int(width / ratio)
    pixels = images.permute(0, 3, 1, 2).float()
    for shape in ((height, new_width), (new_height, new_width)):
        pixels = F.interpolate(pixels, shape, mode="bilinear", antialias=True, align_corners=False)
        pixels = (pixels + 0.5001).floor().clamp(0, 255)  # a tie must not fall to float error
    top, left = (size - new_height) // 2, (size - new_width) // 2
    pads = (left, size - new_width - left, top, size - new_height - top)
    return F.pad(pixels.to(torch.uint8), pads).permute(0, 2, 3, 1)


def state_bins(state: np.ndarray) -> np.ndarray:
    """Normalised state -> int64 bins 0..255 of [-1, 1); -1 below, 255 above."""
    return np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1


def clean_instruction(text: str) -> str:
    """Underscores and line breaks become spaces."""
    return text.strip().replace("_", " ").replace("\n", " ")


def pi05_prompt(instruction: str, state: np.ndarray | None) -> str:
    """pi0.5's prompt with the normalised state [D] in it."""
    bins = " ".join(map(str, state_bins(np.asarray(state))))
    return f"Task: {clean_instruction(instruction)}, State: {bins};\nAction: "


def camera_image(env_obs: Mapping[str, Any], source: str) -> Any:
    """The image [B, H, W, 3] that a data configuration means by main_images or extra_view_images.N.

    Raises ValueError naming the source when the observation has no such camera.
    """
    key, _, number = source.partition(".")
    images = env_obs.get(source, env_obs.get(key))
    if images is not None and images.ndim == 5:
        index = int(number or 0)
        images = images[:, index] if index < images.shape[1] else None
    if images is None:
        has = ", ".join(name for name, value in env_obs.items() if value is not None)
        raise ValueError(f"the data configuration wants the camera {source!r}; the observation has {has}")
    return images
