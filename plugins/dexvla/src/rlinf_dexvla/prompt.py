"""Observations as the vision-language model's inputs: chat text, left padding, image patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from rlinf_dexvla.config import CameraConfig
from rlinf_dexvla.tokenizers import ANSWER_END, IM_END, IMAGE, PAD, SPECIAL, Tokenizer

#: The label of tokens that no loss counts.
IGNORED: Final = -100


def chat_text(instruction: str, image_tokens: Sequence[int], system_prompt: str | None) -> str:
    """Qwen-VL's chat format: a system message, a user message of images and instruction, the answer's start.

    image_tokens: how many tokens each image takes.
    """
    system = "" if system_prompt is None else f"<|im_start|>system\n{system_prompt}<|im_end|>\n"
    images = "".join(f"<|vision_start|>{IMAGE * count}<|vision_end|>" for count in image_tokens)
    return f"{system}<|im_start|>user\n{images}{instruction}<|im_end|>\n<|im_start|>assistant\n"


def answer_text(reasoning: str, *, use_reasoning: bool) -> str:
    """What the model shall answer: the reasoning and "Next action:", or nothing; then the end of the turn."""
    return f"{reasoning}{ANSWER_END}{IM_END}" if use_reasoning else IM_END


class PromptBuilder:
    """Text to ids. Prompts are padded on the left, answers on the right: the answer starts at one column."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_tokens: Sequence[int],
        *,
        system_prompt: str | None,
        use_reasoning: bool,
        max_prompt_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_tokens = tuple(image_tokens)
        self.system_prompt = system_prompt
        self.use_reasoning = use_reasoning
        self.max_prompt_tokens = max_prompt_tokens
        self.pad_id = tokenizer.token_id(PAD)
        self.end_id = tokenizer.token_id(IM_END)
        self._barred = torch.tensor([tokenizer.token_id(token) for token in SPECIAL if token != IM_END])
        self._cache: dict[str, list[int]] = {}

    def prompts(self, instructions: Sequence[str], length: int | None = None) -> Tensor:
        """int64 [B, L] with padding on the left; L is `length` or the longest prompt's."""
        rows = [self._prompt(text) for text in instructions]
        width = length or max(map(len, rows))
        return torch.tensor([[self.pad_id] * (width - len(row)) + row for row in rows])

    def answers(self, reasonings: Sequence[str]) -> Tensor:
        """int64 [B, N] with padding on the right."""
        rows = [
            self.tokenizer.encode(answer_text(text, use_reasoning=self.use_reasoning)) for text in reasonings
        ]
        width = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows])

    def bar(self, logits: Tensor) -> Tensor:
        """Logits [..., V] of an answer's tokens, -inf for padding and image tokens: when the answer is read
        again they would be taken for padding and images."""
        return logits.index_fill(-1, self._barred.to(logits.device), -math.inf)

    def texts(self, answers: Tensor) -> list[str]:
        """The reasoning in answers [B, N]: up to the end of the turn, without "Next action:"."""
        texts = []
        for row in answers.tolist():
            end = row.index(self.end_id) if self.end_id in row else len(row)
            text = self.tokenizer.decode([i for i in row[:end] if i != self.pad_id])
            texts.append(text.removesuffix(ANSWER_END).strip())
        return texts

    def _prompt(self, instruction: str) -> list[int]:
        if instruction not in self._cache:
            text = chat_text(instruction, self.image_tokens, self.system_prompt)
            ids = self.tokenizer.encode(text)
            if len(ids) > self.max_prompt_tokens:
                raise ValueError(
                    f"the prompt of {instruction!r} has {len(ids)} tokens ({sum(self.image_tokens)} of them "
                    f"images); model.dexvla.max_prompt_tokens admits {self.max_prompt_tokens}"
                )
            self._cache[instruction] = ids
        return self._cache[instruction]


class ImageGeometry:
    """Sizes of the images and of the grids of patches that the vision tower sees."""

    def __init__(self, cameras: Sequence[CameraConfig], *, patch: int, merge: int, temporal: int) -> None:
        unit = patch * merge
        self.patch, self.merge, self.temporal = patch, merge, temporal
        self.keys = [camera.key for camera in cameras]
        self.sizes = [
            (max(1, round(c.height / unit)) * unit, max(1, round(c.width / unit)) * unit) for c in cameras
        ]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each image, after merging."""
        unit = self.patch * self.merge
        return [(h // unit) * (w // unit) for h, w in self.sizes]

    def grid(self, batch: int, device: torch.device) -> Tensor:
        """int64 [batch * cameras, 3]: frames, rows and columns of patches, all images of a sample in turn."""
        one = [[1, h // self.patch, w // self.patch] for h, w in self.sizes]
        return torch.tensor(one * batch, device=device)

    def resize(self, env_obs: dict[str, Any], device: torch.device) -> list[Tensor]:
        """uint8 [B, h, w, 3] of every camera, as the model sees it. Raises ValueError naming the key."""
        return [resize(_view(env_obs, key, device), size) for key, size in zip(self.keys, self.sizes)]

    def patches(self, images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """float32 [B * patches per sample, 3 * temporal * patch^2] in Qwen-VL's order, sample by sample."""
        parts = [self._patchify(image, mean, std) for image in images]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def _patchify(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        x = images.float() / 255
        x = (x - torch.tensor(mean, device=x.device)) / torch.tensor(std, device=x.device)
        p, m = self.patch, self.merge
        x = x.unflatten(2, (-1, m, p)).unflatten(1, (-1, m, p))  # B, rows, m, p, columns, m, p, 3
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6)  # B, rows, columns, m, m, 3, time, p, p
        return x.expand(*x.shape[:6], self.temporal, p, p).flatten(5).flatten(1, 4)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, H, W, 3] -> uint8 [B, *size, 3], antialiased bicubic (what Pillow's resize does)."""
    if tuple(images.shape[1:3]) == size:
        return images
    x = images.permute(0, 3, 1, 2)
    if x.device.type == "cpu":
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
    else:  # only the CPU kernel takes uint8
        x = F.interpolate(x.float(), size=size, mode="bicubic", antialias=True).round().clamp(0, 255).byte()
    return x.permute(0, 2, 3, 1).contiguous()


def _view(env_obs: dict[str, Any], key: str, device: torch.device) -> Tensor:
    name, _, view = key.partition(".")
    if key in env_obs:  # a sample of a dataset has every camera under its key
        name, view = key, ""
    images = env_obs.get(name)
    if images is None:
        raise ValueError(f"dexvla needs {name!r} in the observation; it has {', '.join(env_obs)}")
    images = torch.as_tensor(images)
    if view:
        if images.dim() != 5 or int(view) >= images.shape[1]:
            raise ValueError(f"{name}: view {view} asked for; got shape {tuple(images.shape)}")
        images = images[:, int(view)]
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
        raise ValueError(f"{key}: expected uint8 [B, H, W, 3], got {images.dtype} {tuple(images.shape)}")
    return images.to(device)
