"""A judge that writes, in the interface of policies: it learns to write judgements, serves as a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlinf.models.factory import config_errors, plugin_config
from rlinf.models.language.actor import ActorVL
from rlinf.models.language.config import JudgeConfig
from rlinf.models.language.media import media_in
from rlinf.models.language.policy import NO_TOKEN, LanguagePolicy, processor_and_model
from rlinf.models.language.policy import processor as language_processor
from rlinf.models.language.text import TextProcessor
from rlinf.models.reward.generative import Verdict, parse_verdict

if TYPE_CHECKING:
    from omegaconf import DictConfig


class GenerativeRewardPolicy(LanguagePolicy):
    """A vision-language policy whose answers are judgements.

    It trains as every language model: by SFT on rows whose `prompt` is what `template` makes and whose
    `answer` is the judgement, or by RL on prompts. `score` judges with its most likely tokens.
    """

    def __init__(self, *args: Any, judging: JudgeConfig, **kwargs: Any) -> None:
        """args, kwargs: of `LanguagePolicy`."""
        super().__init__(*args, **kwargs)
        self.judging = judging

    def judge(
        self, prompts: Sequence[str], answers: Sequence[str], media: Mapping[str, Any] | None = None
    ) -> list[Verdict]:
        """A judgement of each answer; media: the prompts' main_images."""
        config = self.judging
        # Not `format`: prompts and answers may hold braces.
        texts = [
            config.template.replace("{answer}", "\0").replace("{prompt}", prompt).replace("\0", answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        actions, _ = self.predict_action_batch({"task_descriptions": texts, **media_in(media or {})}, "eval")
        tokens = actions[..., 0].long().tolist()
        written = [self.processor.decode([i for i in row if i != NO_TOKEN]) for row in tokens]
        return [
            parse_verdict(text, low=config.low, high=config.high, pattern=config.pattern) for text in written
        ]

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], media: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Scores float32 [B] in [0, 1]; `unparsed` where a judgement holds none."""
        verdicts = self.judge(prompts, answers, media)
        unparsed = self.judging.unparsed
        return torch.tensor([unparsed if verdict.score is None else verdict.score for verdict in verdicts])


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> GenerativeRewardPolicy:
    """The policy of `model_type: generative_reward_vl`."""
    config = plugin_config(cfg, JudgeConfig)
    with config_errors(cfg):
        processor, source = processor_and_model(cfg, config, ActorVL.modality)
        actor = ActorVL(source, attn_implementation=config.attn_implementation, vllm=config.vllm)
        policy = GenerativeRewardPolicy(
            actor, processor, config, length=cfg.num_action_chunks, critic=cfg.add_value_head, judging=config
        )
    return policy.to(torch_dtype)


def processor(cfg: DictConfig) -> tuple[JudgeConfig, TextProcessor]:
    """See `rlinf.models.language.policy.processor`."""
    return language_processor(cfg, JudgeConfig)
