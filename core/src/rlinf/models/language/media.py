"""Pictures and sounds before a prompt: what a model takes of them, and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from torch import Tensor

from rlinf.models.language.modality import SAMPLE_RATE, ActorModality

#: Frames of a spectrogram per second, and samples per frame.
_FRAME_RATE: Final = 100
_HOP: Final = SAMPLE_RATE // _FRAME_RATE


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids of the tokens around one picture or sound."""

    #: Stands for one patch, or for one piece of a sound.
    piece: int
    start: int
    end: int


class Media(Protocol):
    """What a model sees or hears. One picture or sound belongs to each prompt."""

    modality: ClassVar[ActorModality]
    #: Key of an observation, the type of a chat message's part, and how many numbers a size is.
    key: ClassVar[str]
    part: ClassVar[str]
    axes: ClassVar[int]

    @property
    def processor(self) -> Any: ...

    @property
    def tokens(self) -> Tokens: ...

    def read(self, values: np.ndarray) -> tuple[dict[str, Tensor], list[int]]:
        """Batch-first inputs of the model, and how many pieces each picture or sound has."""

    def pieces(self, size: tuple[int, ...]) -> int:
        """Pieces of one of this size: (H, W) of a picture, (samples,) of a sound. Raises ValueError for one
        that the model cannot take."""

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Batch-first inputs as transformers has them, for token ids [B, S]."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of the Qwen-VL families, uint8 [B, H, W, 3]."""

    modality: ClassVar = ActorModality.VISION_LANGUAGE
    key: ClassVar = "main_images"
    part: ClassVar = "image"
    axes: ClassVar = 2

    #: transformers' image processor.
    processor: Any
    tokens: Tokens

    def read(self, values: np.ndarray) -> tuple[dict[str, Tensor], list[int]]:
        seen = self.processor(images=list(values), return_tensors="pt")
        grids = seen["image_grid_thw"]
        patches = seen["pixel_values"].view(len(values), -1, seen["pixel_values"].shape[-1])
        counts = (grids.prod(-1) // self.processor.merge_size**2).tolist()
        return {"pixel_values": patches.float(), "image_grid_thw": grids}, counts

    def pieces(self, size: tuple[int, ...]) -> int:
        return self.processor.get_number_of_image_patches(*size) // self.processor.merge_size**2

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "pixel_values": inputs["pixel_values"].flatten(0, 1),
            "image_grid_thw": inputs["image_grid_thw"],
            "mm_token_type_ids": (ids == self.tokens.piece).long(),
        }


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Sounds of Qwen2-Audio, float32 [B, N] at `SAMPLE_RATE`, NaN after a sound's end."""

    modality: ClassVar = ActorModality.AUDIO_LANGUAGE
    key: ClassVar = "audios"
    part: ClassVar = "audio"
    axes: ClassVar = 1

    #: transformers' `WhisperFeatureExtractor`.
    processor: Any
    tokens: Tokens

    def read(self, values: np.ndarray) -> tuple[dict[str, Tensor], list[int]]:
        waves = [wave[~np.isnan(wave)] for wave in values]
        counts = [self.pieces(wave.shape) for wave in waves]
        heard = self.processor(
            waves, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt"
        )
        mask = heard["attention_mask"].long()
        return {"input_features": heard["input_features"].float(), "feature_attention_mask": mask}, counts

    def pieces(self, size: tuple[int, ...]) -> int:
        (samples,) = size
        if samples > self.processor.n_samples:
            raise ValueError(
                f"a sound of {samples / SAMPLE_RATE:.2f} s is longer than the model hears, "
                f"{self.processor.n_samples / SAMPLE_RATE:g} s"
            )
        # Two convolutions of stride 1 and 2, then a mean of two: as transformers' audio tower counts.
        pieces = (((-(-samples // _HOP)) - 1) // 2 + 1 - 2) // 2 + 1
        if pieces < 2:
            raise ValueError(f"a sound of {samples} samples is too short for the model to hear")
        return pieces

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)


def small_media(config: Mapping[str, Any], tokens: Tokens) -> Media | None:
    """What a new model, given by transformers' configuration, sees or hears; None: it reads.

    Pictures keep their size up to whole patches. Raises ValueError for an audio tower that does not hear
    whole seconds.
    """
    if vision := config.get("vision_config"):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        unit = vision["patch_size"] * vision["spatial_merge_size"]
        processor = Qwen2VLImageProcessorPil(
            patch_size=vision["patch_size"],
            merge_size=vision["spatial_merge_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            min_pixels=unit**2,
            max_pixels=(unit * 64) ** 2,
        )
        return Pictures(processor=processor, tokens=tokens)
    if audio := config.get("audio_config"):
        return Sounds(processor=_features(audio), tokens=tokens)
    return None


def _features(audio: Mapping[str, Any]) -> Any:
    from transformers import WhisperFeatureExtractor

    positions = audio["max_source_positions"]
    # A position is two frames.
    seconds, rest = divmod(2 * positions, _FRAME_RATE)
    if rest or not seconds:
        raise ValueError(
            f"audio_config.max_source_positions: expected a multiple of {_FRAME_RATE // 2}, which is a "
            f"second; got {positions}"
        )
    return WhisperFeatureExtractor(
        feature_size=audio["num_mel_bins"], sampling_rate=SAMPLE_RATE, hop_length=_HOP, chunk_length=seconds
    )


def pretrained_media(model_path: str, known: Any, tokenizer: Any) -> Media | None:
    """What the model in a folder of transformers, whose configuration is `known`, sees or hears.

    Raises OSError: the folder has no preprocessor of them.
    """
    if hasattr(known, "vision_config"):
        from transformers import AutoImageProcessor

        tokens = Tokens(
            piece=known.image_token_id, start=known.vision_start_token_id, end=known.vision_end_token_id
        )
        return Pictures(processor=AutoImageProcessor.from_pretrained(model_path), tokens=tokens)
    if hasattr(known, "audio_config"):
        from transformers import AutoFeatureExtractor

        ends = tokenizer.convert_tokens_to_ids(["<|audio_bos|>", "<|audio_eos|>"])
        tokens = Tokens(piece=known.audio_token_id, start=ends[0], end=ends[1])
        return Sounds(processor=AutoFeatureExtractor.from_pretrained(model_path), tokens=tokens)
    return None


def attach(ids: list[int], tokens: Tokens, count: int) -> list[int]:
    """A prompt with the pieces of its picture or sound: in the one place that a chat template left for them,
    else first.

    Raises ValueError: there are several places.
    """
    places = ids.count(tokens.piece)
    if places > 1:
        raise ValueError(f"the prompt has {places} places for a picture or sound; there is one of them")
    if places == 0:
        return [tokens.start, *[tokens.piece] * count, tokens.end, *ids]
    at = ids.index(tokens.piece)
    return [*ids[:at], *[tokens.piece] * count, *ids[at + 1 :]]


def without_pieces(ids: Tensor, answers: int, tokens: Tokens, pad: int) -> Tensor:
    """Token ids [B, S] whose last `answers` columns hold no piece: one that was sampled stands for nothing,
    and is read as `pad`."""
    sampled = ids == tokens.piece
    sampled[:, :-answers] = False
    return ids.masked_fill(sampled, pad)


def media_in(obs: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures or sounds of an observation, under their keys."""
    return {key: obs[key] for key in (Pictures.key, Sounds.key) if key in obs}


def doubled(media: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures or sounds of a batch for two answers each: the batch twice."""
    return {key: np.concatenate([values, values]) for key, values in media.items()}
