"""What inputs an actor takes, so that no trainer knows a model's argument names. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

#: Samples per second of the sounds that models hear.
SAMPLE_RATE: Final = 16_000


class ActorModality(str, Enum):
    """Kind of actor."""

    LANGUAGE_ONLY = "language"
    VISION_LANGUAGE = "vision_language"
    AUDIO_LANGUAGE = "audio_language"
    OMNI = "omni"
    EMBODIED = "embodied"


_VISION: Final = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "mm_token_type_ids",
    "token_type_ids",
)
_AUDIO: Final = ("input_features", "feature_attention_mask")

#: Inputs beside token ids and their mask.
MODALITY_PARAMETERS: Final[dict[ActorModality, frozenset[str]]] = {
    ActorModality.LANGUAGE_ONLY: frozenset(),
    ActorModality.VISION_LANGUAGE: frozenset(_VISION),
    ActorModality.AUDIO_LANGUAGE: frozenset(_AUDIO),
    ActorModality.OMNI: frozenset((*_VISION, *_AUDIO)),
    ActorModality.EMBODIED: frozenset(("main_images", "wrist_images", "extra_view_images", "states")),
}


def get_supported_parameters(actor: Any) -> frozenset[str]:
    """Inputs that the actor takes beside token ids and mask: its own `supported_parameters`, else those of
    its `modality`. Raises TypeError for an object that has neither."""
    own = getattr(actor, "supported_parameters", None)
    if own is not None:
        return frozenset(own)
    modality = getattr(actor, "modality", None)
    if not isinstance(modality, ActorModality):
        raise TypeError(
            f"{type(actor).__name__} declares neither supported_parameters nor a modality "
            f"({', '.join(ActorModality.__members__)})"
        )
    return MODALITY_PARAMETERS[modality]


def check_inputs(actor: Any, names: Iterable[str]) -> None:
    """Raises TypeError for inputs that the actor does not take."""
    supported = get_supported_parameters(actor)
    unknown = sorted(set(names) - supported)
    if unknown:
        raise TypeError(
            f"{type(actor).__name__} takes no {', '.join(unknown)}; beside token ids and mask it takes: "
            f"{', '.join(sorted(supported)) or 'nothing'}"
        )


def supports_parameter(actor: Any, name: str) -> bool:
    """Whether the actor takes the input `name`."""
    return name in get_supported_parameters(actor)
