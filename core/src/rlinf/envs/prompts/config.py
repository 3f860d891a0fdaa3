"""Configuration of the environments `prompts` and `preferences`."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlinf.config.schema import Block
from rlinf.rewards import RewardConfig

#: Where rows come from, and columns that each has.
Source = tuple[str, tuple[str, ...]]


class PromptsConfig(Block):
    """Where prompts come from and what judges the answers. The column `image` of a row is its picture,
    `audio` its sound."""

    path: str = Field(
        description="Prompts to train on: a JSONL file, or 'module:attr' of a function that returns rows."
    )
    eval_path: str = Field(description="Held-out prompts, likewise. Evaluation takes them in their order.")
    prompt_key: str = Field(default="prompt", description="Column of the prompt.")
    reference_key: str | None = Field(
        default="answer", description="Column of the right answer; null: there is none."
    )
    rewards: list[RewardConfig] = Field(
        min_length=1, description="What judges an answer; the scores are added up with their weights."
    )
    success: str | None = Field(
        default=None,
        description="Name of the reward that says whether an answer is right; null: the first. It may have "
        "weight 0.",
    )
    success_threshold: float = Field(default=1.0, description="From this score on an answer is right.")
    examples: int = Field(default=2, ge=0, description="Answers per evaluation that the log shows.")

    @model_validator(mode="after")
    def _names(self) -> PromptsConfig:
        labels = [reward.label for reward in self.rewards]
        if len(set(labels)) < len(labels):
            raise ValueError(f"rewards: two have the same name ({', '.join(labels)}): give `name`")
        if self.success is not None and self.success not in labels:
            raise ValueError(f"success: {self.success!r} is none of the rewards ({', '.join(labels)})")
        return self

    @property
    def sources(self) -> tuple[Source, Source]:
        """Of the prompts to train on, and of the held-out ones."""
        columns = (self.prompt_key, *([self.reference_key] if self.reference_key else []))
        return (self.path, columns), (self.eval_path, columns)

    @property
    def success_label(self) -> str:
        """Name of the reward that decides success."""
        return self.success or self.rewards[0].label


class PreferencesConfig(Block):
    """On which pairs a reward model is evaluated."""

    eval_path: str = Field(
        description="Held-out pairs (prompt, chosen, rejected): a JSONL file, or 'module:attr' of a function."
    )

    @property
    def sources(self) -> tuple[Source]:
        """Of the held-out pairs."""
        return ((self.eval_path, ("prompt", "chosen", "rejected")),)
