"""What both policies share: observations in, the value head, and the checks of their inputs."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import torch
from rlinf.data.augment import augment
from rlinf.models.embodiment.base_policy import BasePolicy
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.embodiment.sampling import filter_logits
from torch import Tensor

from rlinf_openvla.codec import ActionStats
from rlinf_openvla.config import VlaConfig
from rlinf_openvla.hf_config import OpenVLAConfig
from rlinf_openvla.network import VlaNetwork
from rlinf_openvla.processing import CROP_AREA, PromptEncoder, normalize_images, resize_images


class VlaPolicy(VlaNetwork, BasePolicy):
    """Network, value head and codec. `forward_inputs` are compact: resized uint8 images, token ids."""

    _no_split_modules = ("LlamaDecoderLayer", "VisionBlock")
    value_head: ValueHead | None

    def __init__(
        self,
        config: VlaConfig,
        hf_config: OpenVLAConfig,
        *,
        prompts: PromptEncoder,
        stats: ActionStats,
        num_action_chunks: int,
        action_dim: int,
        add_value_head: bool,
        skip_init: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.hf_config = config, hf_config
        self.prompts, self.stats = prompts, stats
        self.chunk, self.action_dim = num_action_chunks, action_dim
        self.make_network(hf_config, skip_init=skip_init)
        self.value_head = ValueHead(self.width, config.value_hidden) if add_value_head else None

    @property
    def width(self) -> int:
        return self.language_model.config.hidden_size

    @property
    def action_tokens(self) -> int:
        """Action tokens (or slots) per call."""
        return self.chunk * self.action_dim

    @property
    def stop_id(self) -> int:
        """The end-of-text token."""
        stop = self.language_model.config.eos_token_id
        assert isinstance(stop, int)
        return stop

    @property
    def device(self) -> torch.device:
        return self.language_model.lm_head.weight.device

    def inputs(self, env_obs: dict[str, Any], *, augmented: bool = False) -> dict[str, Tensor]:
        """images uint8 [B,views,3,S,S], input_ids int64 and attention_mask bool [B,L].

        augmented: with the changes of `config.augment`, where it has any.
        """
        views = [self._view(env_obs, key, augmented) for key in self.config.cameras]
        texts = env_obs.get("task_descriptions")
        if texts is None or len(texts) != len(views[0]):
            got = "none" if texts is None else len(texts)
            raise ValueError(f"task_descriptions: expected {len(views[0])}, one per image; got {got}")
        ids, mask = self.prompts(texts)
        inputs = {"images": torch.stack(views, dim=1), "input_ids": ids, "attention_mask": mask}
        return {name: x.to(self.device) for name, x in inputs.items()}

    def _view(self, env_obs: dict[str, Any], key: str, augmented: bool) -> Tensor:
        """uint8 [B,3,S,S]."""
        images, size, crop = _camera(env_obs, key), self.hf_config.image_size, self.config.center_crop
        changes = self.config.augment if augmented else None
        if changes is None:
            return resize_images(images, size, center_crop=crop)
        resized = resize_images(images, size).permute(0, 2, 3, 1)
        area = CROP_AREA if crop else 1.0
        changed = augment([resized], crop_area=area, colors="tensorflow", **changes.model_dump())
        return changed[0].permute(0, 3, 1, 2)

    def logp(self, hidden: Tensor) -> Tensor:
        """Log-probabilities float32 [..., bins]: the one place where the sampling filters act."""
        return filter_logits(
            self.action_logits(hidden), temperature=self.config.temperature, top_k=self.config.top_k
        )

    def values(self, hidden: Tensor) -> Tensor | None:
        """float32 [B,1] of the prompt's last hidden state [B,H]."""
        return None if self.value_head is None else self.value_head(hidden)

    def demonstrated(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Normalised actions float32 [B,chunk,A], and whether a step counts, bool [B,chunk]."""
        actions = torch.as_tensor(batch["actions"]).to(self.device)
        expected = (self.chunk, self.action_dim)
        if actions.dim() != 3 or tuple(actions.shape[1:]) != expected:
            raise ValueError(
                f"actions: expected [B, {expected[0]}, {expected[1]}], got {tuple(actions.shape)}"
            )
        return self.stats.normalize(actions), ~torch.as_tensor(batch["action_is_pad"]).bool().to(self.device)

    def pixel_values(self, inputs: dict[str, Tensor]) -> Tensor:
        return normalize_images(inputs["images"])


def _camera(env_obs: dict[str, Any], key: str) -> Tensor:
    """uint8 [B,H,W,3]. Raises ValueError naming what the observation has."""
    name, _, view = key.partition(".")
    if view and key in env_obs:  # a sample of a dataset has each view by its own name
        name, view = key, ""
    images = env_obs.get(name)
    if images is None:
        raise ValueError(f"the model needs the camera {name!r}; the observation has {', '.join(env_obs)}")
    images = torch.as_tensor(images)
    if view:
        if images.dim() != 5 or int(view) >= images.shape[1]:
            raise ValueError(f"{key}: {name} is {tuple(images.shape)}, which has no view {view}")
        images = images[:, int(view)]
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
        raise ValueError(f"{key}: expected uint8 [B, H, W, 3], got {images.dtype} {tuple(images.shape)}")
    return images


def check_generators(batch: int, generators: Rows[torch.Generator] | None) -> None:
    if generators is not None and len(generators) != batch:
        raise ValueError(f"generators: expected one per sample ({batch}), got {len(generators)}")
