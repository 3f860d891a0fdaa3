"""The vision-language model: transformers' own Qwen-VL, run over prompt and answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf_dexvla.config import VlmConfig
from rlinf_dexvla.tokenizers import IM_END, IM_START, IMAGE, PAD, VIDEO, VISION_END, VISION_START, Tokenizer

_CLIP: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: Mean and standard deviation of the pixels, by family.
PIXEL_STATS: Final = {
    "qwen2_vl": _CLIP,
    "qwen2_5_vl": _CLIP,
    "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
#: The smallest published models: Qwen2-VL-2B, Qwen2.5-VL-3B, Qwen3-VL-2B.
_SIZES: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "qwen2_vl": {
        "text": {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [16, 24, 24]},
        },
        "vision": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4},
    },
    "qwen2_5_vl": {
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [16, 24, 24]},
        },
        "vision": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420},
    },
    "qwen3_vl": {
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_parameters": {"rope_theta": 5e6, "rope_type": "default", "mrope_section": [24, 20, 20]},
        },
        "vision": {"depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096},
    },
}
#: Name of the vision tower's output width in each family's configuration.
_OUT_WIDTH: Final = {
    "qwen2_vl": "hidden_size",
    "qwen2_5_vl": "out_hidden_size",
    "qwen3_vl": "out_hidden_size",
}
_SPECIAL_IDS: Final = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def vlm_config(config: VlmConfig, model_path: str | None, tokenizer: Tokenizer) -> Any:
    """transformers' configuration of the model: that of `model_path`'s config.json, else of `config`.

    Raises ValueError for an architecture that is none of the families, or where both sources differ.
    """
    from transformers import AutoConfig

    file = Path(model_path or "") / "config.json"
    if model_path is not None and file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored.get("model_type") == "qwen2_vla":  # the original's own name for Qwen2-VL with a policy head
            stored = {**stored, "model_type": "qwen2_vl"}
        if stored.get("model_type") not in PIXEL_STATS:
            raise ValueError(
                f"{file}: model_type {stored.get('model_type')!r}; expected one of "
                f"{', '.join(PIXEL_STATS)}, qwen2_vla"
            )
        built = AutoConfig.for_model(**{k: v for k, v in stored.items() if not k.startswith("policy_head")})
        _require_equal("text", config.text, built.get_text_config(), file)
        _require_equal("vision", config.vision, built.vision_config, file)
        return built
    sizes = _SIZES[config.family]
    text = {
        **sizes["text"],
        "bos_token_id": tokenizer.token_id(IM_START),
        "eos_token_id": tokenizer.token_id(IM_END),
        "pad_token_id": tokenizer.token_id(PAD),
        **config.text,
    }
    vision = {**sizes["vision"], _OUT_WIDTH[config.family]: text["hidden_size"], **config.vision}
    ids = {name: tokenizer.token_id(token) for name, token in _SPECIAL_IDS.items()}
    return AutoConfig.for_model(
        config.family, text_config=text, vision_config=vision, tie_word_embeddings=True, **ids
    )


def _require_equal(block: str, given: Mapping[str, Any], built: Any, file: Path) -> None:
    """What the configuration changes must be what the file says."""
    for key, value in given.items():
        have = getattr(built, key, None)
        same = have == value
        if isinstance(value, dict) and isinstance(have, dict):  # transformers adds what follows from it
            same = value.items() <= have.items()
        if not same:
            raise ValueError(f"model.dexvla.vlm.{block}.{key}: {value!r} here, {have!r} in {file}")


def build_vlm(config: Any) -> nn.Module:
    """The model of a configuration with fresh weights, drawn from torch's global generator.

    Learned positions of patches (Qwen3-VL) begin as large as what they are added to: at transformers'
    `initializer_range` a small model learns what is in an image long before where.
    """
    from transformers import AutoModelForImageTextToText

    vlm = AutoModelForImageTextToText.from_config(config)
    if isinstance(positions := getattr(vlm.model.visual, "pos_embed", None), nn.Embedding):
        nn.init.normal_(positions.weight)
    return vlm


@dataclass(frozen=True)
class Vision:
    """Images for the vision tower: patches [N, features] and grids [images, 3]."""

    patches: Tensor
    grid: Tensor


def encode(vlm: Any, ids: Tensor, mask: Tensor, vision: Vision) -> Tensor:
    """Hidden states [B, S, H] after the final norm, of ids [B, S] with bool mask [B, S]."""
    positions, _ = _positions(vlm, ids, mask, vision.grid)
    return _run(vlm, ids, mask, positions, vision).last_hidden_state


def language_loss(vlm: Any, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Next-token cross-entropy, float32 scalar: the mean over labels with `weights` [B, S]; 0 without any.

    hidden [B, S, H], labels int64 [B, S] with -100 where nothing counts. Logits are computed from the first
    column with a label on.
    """
    columns = (labels != -100).any(dim=0).nonzero()
    if len(columns) == 0:
        return hidden.sum() * 0.0
    first = int(columns[0])
    logits = vlm.lm_head(hidden[:, first - 1 : -1]).float()
    losses = F.cross_entropy(logits.transpose(1, 2), labels[:, first:], reduction="none", ignore_index=-100)
    weights = weights[:, first:] * (labels[:, first:] != -100)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-8)


@dataclass(frozen=True)
class Generated:
    """Answers int64 [B, N] (padding after the end of the turn) and hidden states of prompt and answer.

    prompt [B, L, H]; answer [B, N, H]. The answer's last token is in it.
    """

    answers: Tensor
    prompt: Tensor
    answer: Tensor


#: Chooses tokens int64 [B] from logits [B, V].
Choose = Callable[[Tensor], Tensor]


@torch.no_grad()
def generate(
    vlm: Any,
    prompts: Tensor,
    mask: Tensor,
    vision: Vision,
    *,
    max_tokens: int,
    end_id: int,
    pad_id: int,
    choose: Choose,
) -> Generated:
    """Answer every prompt until all have ended their turn, with a key-value cache.

    Args:
        prompts: int64 [B, L], padded on the left; mask: bool, False on the padding.
        choose: the next token of every row.
    """
    positions, deltas = _positions(vlm, prompts, mask, vision.grid)
    out = _run(vlm, prompts, mask, positions, vision, use_cache=True)
    prompt, cache = out.last_hidden_state, out.past_key_values
    last, length = prompt[:, -1], mask.sum(dim=1, keepdim=True)
    running = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    tokens: list[Tensor] = []
    states: list[Tensor] = []
    for _ in range(max_tokens):
        chosen = choose(vlm.lm_head(last).float())
        chosen = torch.where(running, chosen, pad_id)
        mask = torch.cat([mask, running[:, None]], dim=1)
        positions = (length + deltas).expand(3, -1, -1)
        out = _run(vlm, chosen[:, None], mask, positions, None, past_key_values=cache, use_cache=True)
        last = out.last_hidden_state[:, -1]
        tokens.append(chosen)
        states.append(last)
        length = length + running[:, None]
        running = running & (chosen != end_id)
        if not bool(running.any()):
            break
    return Generated(torch.stack(tokens, dim=1), prompt, torch.stack(states, dim=1))


def _positions(vlm: Any, ids: Tensor, mask: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """M-RoPE positions int64 [3, B, S], and the shift [B, 1] of a token's count that continues them."""
    is_image = (ids == vlm.config.image_token_id).int()
    return vlm.model.get_rope_index(ids, is_image, image_grid_thw=grid, attention_mask=mask)


def _run(
    vlm: Any, ids: Tensor, mask: Tensor, positions: Tensor, vision: Vision | None, **options: Any
) -> Any:
    images = {} if vision is None else {"pixel_values": vision.patches, "image_grid_thw": vision.grid}
    options.setdefault("use_cache", False)
    return vlm.model(input_ids=ids, attention_mask=mask.long(), position_ids=positions, **images, **options)


def image_embeddings(vlm: Any, vision: Vision) -> Tensor:
    """Merged vision tokens of all images [N, H]."""
    features: Sequence[Tensor] = vlm.model.get_image_features(vision.patches, vision.grid).pooler_output
    return torch.cat(tuple(features))
