"""Configuration of the language models, and of reward models on them: `model.<model_type>`."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from rlinf.config.patterns import with_group
from rlinf.config.schema import Block

#: The last `Score: 7`, `score = 7.5` or `<score>7</score>` of a judgement.
SCORE: Final = r"(?i)score\s*(?:[:=]|is|>)\s*\**\s*(-?\d+(?:\.\d+)?)"


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

    @field_validator("characters")
    @classmethod
    def _each_once(cls, value: str | None) -> str | None:
        twice = sorted({character for character in value or "" if value and value.count(character) > 1})
        if value == "" or twice:
            raise ValueError(f"expected one or more, each once; twice: {''.join(twice) or 'none'}")
        return value


class ActorConfig(LanguageConfig):
    """A model that answers."""

    temperature: float = Field(default=1.0, gt=0, description="Of sampling, and of training's ratios.")
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        description="Answers under way at once (continuous batching, text only), each in a slot of a static "
        "cache that the next prompt gets when it ends; null: all of a call.",
    )
    vllm: dict[str, Any] | None = Field(
        default=None,
        description="Answers come from vLLM (rlinf-core[vllm], text only) with these keyword arguments of "
        "its class LLM; {}: its own choices, but gpu_memory_utilization 0.4. null: transformers.",
    )
    cache_implementation: Literal["static", "dynamic"] | None = Field(
        default=None,
        description="Cache of transformers' `generate`, by which models answer that see or hear; null: its "
        "default.",
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


class JudgeConfig(ActorConfig):
    """A model that writes a judgement, in which a score is read."""

    template: str = Field(
        default="{prompt}\n{answer}\nScore:",
        description="What the judge reads, from the prompt and the answer that it judges.",
    )
    low: float = Field(default=0.0, description="Worst score that it may write.")
    high: float = Field(default=10.0, description="Best score that it may write.")
    pattern: str = Field(
        default=SCORE, description="Regular expression whose first group is the score; the last match counts."
    )
    unparsed: float = Field(
        default=0.0,
        description="Reward, where scores are scaled to [0, 1], of an answer whose judgement holds none.",
    )

    @field_validator("template")
    @classmethod
    def _has_both(cls, value: str) -> str:
        for name in ("{prompt}", "{answer}"):
            if name not in value:
                raise ValueError(f"expected {name} in it, got {value!r}")
        return value

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        return with_group(value, "the score")

    @model_validator(mode="after")
    def _is_a_scale(self) -> JudgeConfig:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got low {self.low:g} and high {self.high:g}")
        return self
