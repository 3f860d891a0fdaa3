"""Configuration of the language models, and of reward models on them: `model.<model_type>`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rlinf.config.schema import Block


class LanguageConfig(Block):
    """A model of transformers with its tokenizer: those of `model.model_path`, or built as written here."""

    config: dict[str, Any] | None = Field(
        default=None,
        description="transformers' configuration (with model_type) of a model with random weights, where "
        "there is no model.model_path. Sizes of vocabulary and special tokens follow from `characters`.",
    )
    characters: str | None = Field(
        default=None, description="Alphabet of its tokenizer: every character is a token."
    )
    max_prompt_length: int = Field(default=512, ge=1, description="Longest prompt, in tokens.")
    chat_template: bool = Field(
        default=False, description="Wrap prompts in the tokenizer's chat template as the user's message."
    )
    attn_implementation: Literal["eager", "sdpa", "flex_attention", "flash_attention_2"] | None = Field(
        default=None, description="transformers' attention; null: sdpa."
    )


class ActorConfig(LanguageConfig):
    """A model that answers."""

    temperature: float = Field(default=1.0, gt=0, description="Of sampling, and of training's ratios.")
    cache_implementation: Literal["static", "dynamic"] | None = Field(
        default=None, description="transformers' cache in generation; null: its default."
    )
    packing_samples: bool = Field(
        default=False, description="Training joins the rows of a micro-batch without padding (text only)."
    )


class RewardModelConfig(LanguageConfig):
    """A model that scores answers."""

    pooling: Literal["last_token", "attention"] = Field(
        default="last_token", description="Of hidden states to one vector."
    )
    probing_layer: int = Field(
        default=-1, description="Hidden states: 0 the embeddings, 1 the first block, -1 the last."
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="By how much the chosen answer should win; a row's `margin` goes first.",
    )
