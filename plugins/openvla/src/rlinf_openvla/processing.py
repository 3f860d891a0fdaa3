"""From cameras and instructions to what the network reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Share of the area that the LIBERO checkpoints' evaluation keeps: they were trained on random crops of it.
CROP_AREA: Final = 0.9
#: The originals keep their means and deviations in bfloat16's precision.
DINO_MEAN: Final = (0.484375, 0.455078125, 0.40625)
DINO_STD: Final = (0.228515625, 0.2236328125, 0.224609375)
SIGLIP_MEAN: Final = (0.5, 0.5, 0.5)
SIGLIP_STD: Final = (0.5, 0.5, 0.5)

#: `prompt_style` -> text around the instruction.
PROMPTS: Final = {
    "openvla": "In: What action should the robot take to {}?\nOut:",
    "openvla_v01": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: What action should the robot take to {}? ASSISTANT:"
    ),
}


def resize_images(images: Tensor, size: int, *, center_crop: bool = False) -> Tensor:
    """uint8 [B,H,W,3] of any size -> uint8 [B,3,size,size]: naive, bicubic and antialiased like PIL's.

    center_crop: then keep the middle `CROP_AREA` and enlarge it bilinearly, as LIBERO's evaluation does.
    """
    x = images.permute(0, 3, 1, 2)
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x.cpu(), (size, size), mode="bicubic", antialias=True)
    return _crop(x) if center_crop else x.contiguous()


def _crop(x: Tensor) -> Tensor:
    """Bilinear samples of the middle, corners on corners; values are truncated like the original's are."""
    side, size = math.sqrt(CROP_AREA), x.shape[-1]
    line = torch.linspace(-side, side, size, device=x.device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).expand(len(x), -1, -1, -1)
    middle = F.grid_sample(x.float() / 255, grid, mode="bilinear", align_corners=True)
    return (middle.clamp(0, 1) * 255.5).clamp(max=255).to(torch.uint8)


def normalize_images(images: Tensor) -> Tensor:
    """uint8 [B,views,3,S,S] -> pixel values float32 [B, 6 * views, S, S], per view DINOv2, SigLIP."""
    x = images.float() / 255
    parts = []
    for mean, std in ((DINO_MEAN, DINO_STD), (SIGLIP_MEAN, SIGLIP_STD)):
        shift, scale = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (mean, std))
        parts.append((x - shift) / scale)
    return torch.cat(parts, dim=2).flatten(1, 2)


class PromptEncoder:
    """Instructions -> token ids of a fixed length, padded on the left."""

    def __init__(self, tokenizer: Any, *, style: str, max_tokens: int) -> None:
        """tokenizer: a transformers tokenizer whose `__call__` puts BOS first."""
        self.tokenizer, self.style, self.max_tokens = tokenizer, style, max_tokens
        # Llama's word separator: the original was trained with it between "Out:" and the first action token.
        space = tokenizer.get_vocab().get("▁")
        self.suffix: list[int] = [] if space is None else [space]
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def text(self, instruction: str) -> str:
        return PROMPTS[self.style].format(instruction.lower())

    def ids(self, instruction: str) -> list[int]:
        """BOS, the prompt, the separator before the first action token."""
        ids = list(self.tokenizer(self.text(instruction), add_special_tokens=True).input_ids)
        bos = self.tokenizer.bos_token_id
        if ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids if ids[-1:] == self.suffix else ids + self.suffix

    def __call__(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """int64 ids and bool mask [B, max_tokens], padding left of BOS.

        Raises ValueError for an instruction that does not fit: cutting it would make two tasks look alike.
        """
        ids = torch.full((len(instructions), self.max_tokens), self.pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        encoded = {text: self.ids(text) for text in dict.fromkeys(instructions)}
        for i, text in enumerate(instructions):
            row = encoded[text]
            if len(row) > self.max_tokens:
                raise ValueError(
                    f"instruction {text!r} makes {len(row)} prompt tokens; max_prompt_tokens = "
                    f"{self.max_tokens}, raise it"
                )
            ids[i, self.max_tokens - len(row) :] = torch.tensor(row)
            mask[i, self.max_tokens - len(row) :] = True
        return ids, mask
