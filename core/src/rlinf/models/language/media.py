"""Pictures and sounds before a prompt: what a model takes of them, and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from rlinf.models.language.modality import SAMPLE_RATE, ActorModality

#: transformers' model type of both PaliGemmas.
PALIGEMMA: Final = "paligemma"
#: Frames of a spectrogram per second, and samples per frame.
_FRAME_RATE: Final = 100
_HOP: Final = SAMPLE_RATE // _FRAME_RATE


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids of the tokens for pictures or a sound."""

    #: Stands for one patch, or for one piece of a sound.
    piece: int
    #: Around the pieces of each.
    start: tuple[int, ...]
    end: tuple[int, ...]


class Media(Protocol):
    """What a model sees or hears. Pictures, or a sound, belong to each prompt."""

    modality: ClassVar[ActorModality]
    #: Key of an observation, the type of a chat message's part, and how many numbers a size is.
    key: ClassVar[str]
    part: ClassVar[str]
    axes: ClassVar[int]
    #: Whether each prompt has exactly one.
    one: ClassVar[bool]
    #: What ends the text of a prompt, for tokenizers whose own beginning is not wanted; None: encode as ever.
    suffix: ClassVar[str | None]

    @property
    def processor(self) -> Any: ...

    @property
    def tokens(self) -> Tokens: ...

    def read(self, values: np.ndarray, longest: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Batch-first inputs of the model, and of each prompt how many pieces each picture or sound has.

        longest: tokens of the longest prompt, which bounds the inputs of pictures that are varied.
        """

    def pieces(self, size: tuple[int, ...]) -> int:
        """Pieces of one of this size: (H, W) of a picture, (samples,) of a sound. Raises ValueError for one
        that the model cannot take."""

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor], answers: int) -> dict[str, Tensor]:
        """Batch-first inputs as transformers has them, for token ids [B, S] whose last `answers` columns are
        no prompt."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of the Qwen-VL families: uint8 [B, H, W, 3], or object [B], a list of them each."""

    modality: ClassVar = ActorModality.VISION_LANGUAGE
    key: ClassVar = "main_images"
    part: ClassVar = "image"
    axes: ClassVar = 2
    one: ClassVar = False
    suffix: ClassVar[str | None] = None

    #: transformers' image processor.
    processor: Any
    tokens: Tokens

    def read(self, values: np.ndarray, longest: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        """pixel_values float32 [B, patches, N] and image_grid_thw int64 [B, pictures, 3], zeros after the
        last of a row. Pictures that are varied have room for as many as fit into a prompt, so that rows of
        several batches can be joined."""
        rows = _lists(values)
        seen = self.processor(images=[picture for row in rows for picture in row], return_tensors="pt")
        grids = seen["image_grid_thw"].split([len(row) for row in rows])
        sizes = [int(grid.prod(-1).sum()) for grid in grids]
        width, pictures = max(sizes), max(map(len, rows))
        merged = self.processor.merge_size**2
        if values.dtype == object:
            width, pictures = max(width, longest * merged), max(pictures, longest)
        patches = torch.zeros(len(rows), width, seen["pixel_values"].shape[-1])
        places = torch.zeros(len(rows), pictures, 3, dtype=torch.long)
        for row, own in enumerate(seen["pixel_values"].float().split(sizes)):
            patches[row, : len(own)] = own
            places[row, : len(grids[row])] = grids[row]
        counts = [(grid.prod(-1) // merged).tolist() for grid in grids]
        return {"pixel_values": patches, "image_grid_thw": places}, counts

    def pieces(self, size: tuple[int, ...]) -> int:
        return self.processor.get_number_of_image_patches(*size) // self.processor.merge_size**2

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor], answers: int) -> dict[str, Tensor]:
        patches, grids = inputs["pixel_values"], inputs["image_grid_thw"]
        counts = grids.prod(-1)
        used = torch.arange(patches.shape[1], device=patches.device) < counts.sum(-1, keepdim=True)
        return {
            "pixel_values": patches[used],
            "image_grid_thw": grids[counts > 0],
            "mm_token_type_ids": (ids == self.tokens.piece).long(),
        }


@dataclass(frozen=True, kw_only=True)
class ScaledPictures:
    """Pictures of PaliGemma, scaled to one size; as those of `Pictures`, one for each prompt. Prompt and
    picture attend to each other both ways, answers do not."""

    modality: ClassVar = ActorModality.VISION_LANGUAGE
    key: ClassVar = "main_images"
    part: ClassVar = "image"
    axes: ClassVar = 2
    one: ClassVar = True
    suffix: ClassVar[str | None] = "\n"

    #: transformers' image processor, and the patches of a picture.
    processor: Any
    patches: int
    tokens: Tokens

    def read(self, values: np.ndarray, longest: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        pictures = [picture for row in _lists(values) for picture in row]
        seen = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": seen.float()}, [[self.patches] * len(row) for row in _lists(values)]

    def pieces(self, size: tuple[int, ...]) -> int:
        return self.patches

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor], answers: int) -> dict[str, Tensor]:
        kinds = torch.zeros_like(ids)
        kinds[:, ids.shape[1] - answers :] = 1
        return {**inputs, "token_type_ids": kinds}


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Sounds of Qwen2-Audio, float32 [B, N] at `SAMPLE_RATE`, NaN after a sound's end."""

    modality: ClassVar = ActorModality.AUDIO_LANGUAGE
    key: ClassVar = "audios"
    part: ClassVar = "audio"
    axes: ClassVar = 1
    one: ClassVar = False
    suffix: ClassVar[str | None] = None

    #: transformers' `WhisperFeatureExtractor`.
    processor: Any
    tokens: Tokens

    def read(self, values: np.ndarray, longest: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        waves = [wave[~np.isnan(wave)] for wave in values]
        counts = [[self.pieces(wave.shape)] for wave in waves]
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

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor], answers: int) -> dict[str, Tensor]:
        return dict(inputs)


def _lists(values: np.ndarray) -> list[list[np.ndarray]]:
    """The pictures of each prompt."""
    return [list(row) if values.dtype == object else [row] for row in values]


def small_media(config: Mapping[str, Any], piece: int, start: int, end: int) -> Media | None:
    """What a new model, given by transformers' configuration, sees or hears; None: it reads.

    Pictures keep their size up to whole patches. Raises ValueError for an audio tower that does not hear
    whole seconds.

    Args:
        piece, start, end: tokens; PaliGemma's text begins with `start`.
    """
    tokens = Tokens(piece=piece, start=(start,), end=(end,))
    if config.get("model_type") == PALIGEMMA:
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        side, patch = (int(config["vision_config"][key]) for key in ("image_size", "patch_size"))
        processor: Any = SiglipImageProcessorPil(size={"height": side, "width": side})
        return _scaled(processor, side // patch, piece, start)
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


def _scaled(processor: Any, side: int, piece: int, start: int) -> ScaledPictures:
    """side: patches of a picture's side; start: token with which its prompt begins, after the picture."""
    return ScaledPictures(
        processor=processor, patches=side**2, tokens=Tokens(piece=piece, start=(), end=(start,))
    )


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

        processor = AutoImageProcessor.from_pretrained(model_path)
        if known.model_type == PALIGEMMA:
            side = known.vision_config.image_size // known.vision_config.patch_size
            return _scaled(processor, side, known.image_token_id, known.text_config.bos_token_id)
        ends = known.vision_start_token_id, known.vision_end_token_id
        tokens = Tokens(piece=known.image_token_id, start=ends[:1], end=ends[1:])
        return Pictures(processor=processor, tokens=tokens)
    if hasattr(known, "audio_config"):
        from transformers import AutoFeatureExtractor

        ends = tokenizer.convert_tokens_to_ids(["<|audio_bos|>", "<|audio_eos|>"])
        tokens = Tokens(piece=known.audio_token_id, start=(ends[0],), end=(ends[1],))
        return Sounds(processor=AutoFeatureExtractor.from_pretrained(model_path), tokens=tokens)
    return None


def attach(ids: list[int], tokens: Tokens, counts: Sequence[int]) -> list[int]:
    """A prompt with the pieces of its pictures or sound: in the places that a chat template left for them,
    else first.

    Raises ValueError: there is another number of places.
    """
    places = ids.count(tokens.piece)
    if places == 0:
        before = [[*tokens.start, *[tokens.piece] * count, *tokens.end] for count in counts]
        return [*chain(*before), *ids]
    if places != len(counts):
        raise ValueError(f"the prompt has {places} places for pictures or a sound, and {len(counts)} of them")
    waiting = iter(counts)
    return [*chain(*([i] * next(waiting) if i == tokens.piece else [i] for i in ids))]


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
