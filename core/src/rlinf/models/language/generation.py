"""Sampling of continuations, a generator per sample: continuous batching, transformers' `generate`, vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rlinf.models.embodiment.sampling import filter_logits, gumbel_per_sample

if TYPE_CHECKING:
    from rlinf.models.language.vllm_engine import VllmEngine


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How continuations are sampled: from the whole distribution, which is what training recomputes."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    #: Tokens that end a continuation; None: those of the model's generation configuration.
    eos_token_ids: tuple[int, ...] | None = None
    #: What follows the end; None: the model's, else the first end token.
    pad_token_id: int | None = None
    #: Rows under way at once in continuous batching; None: all.
    max_num_seqs: int | None = None
    #: Cache of transformers' `generate`: "static" is allocated once and keeps shapes, which compiled kernels
    #: want.
    cache_implementation: str | None = None


class Sample(NamedTuple):
    """Prompts with answers.

    sequences, attention_mask: int64 [B, P+A]. action_mask: bool [B, A], what was sampled, the end token
    included. logprobs: float32 [B, A], of each token when it was drawn, if the weights changed meanwhile;
    None: they did not, so any forward gives them.
    """

    sequences: Tensor
    attention_mask: Tensor
    action_mask: Tensor
    logprobs: Tensor | None = None


class PerSampleNoise:
    """Makes greedy search sample: the arg-max of log-probabilities plus Gumbel noise is a draw from them.

    A `LogitsProcessor` [B, S], [B, V] -> [B, V]. transformers' own sampling has one generator for the batch,
    under which a sample depends on its neighbours.
    """

    def __init__(self, generators: Sequence[torch.Generator], temperature: float) -> None:
        self._generators, self._temperature = generators, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = filter_logits(scores, temperature=self._temperature)
        return logp + gumbel_per_sample(logp.shape, self._generators, logp.device)


def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    generators: Sequence[torch.Generator] | None,
    config: GenerationConfig,
    inputs: dict[str, Any],
    engine: VllmEngine | None = None,
    refresh: Callable[[], bool] | None = None,
) -> Sample:
    """By the engine where there is one; by continuous batching where the model reads only and its layers
    attend to all that came before; else by `generate_batch`. The other arguments are those of
    `ActorLanguage.sample`; `generators` None takes the most likely tokens."""
    from rlinf.models.language.continuous import fits, generate_continuously

    if engine is None and (inputs or not fits(model)):
        return generate_batch(model, input_ids, attention_mask, generators, config, inputs)
    logprobs: list[list[float]] | None = None
    ends = _ends(model, config)
    rows = [tuple(row[mask].tolist()) for row, mask in zip(input_ids, attention_mask.bool(), strict=True)]
    if engine is None:
        answers, logprobs = generate_continuously(model, rows, generators, config, ends, refresh)
    else:
        answers = engine.answer(rows, generators, config, ends)
    width = max(map(len, answers))
    sampled = input_ids.new_full((len(rows), width), _pad(model, config, ends))
    for row, answer in zip(sampled, answers, strict=True):
        row[: len(answer)] = torch.tensor(answer)
    sample = _joined(input_ids, attention_mask, sampled, ends)
    if logprobs is None:
        return sample
    drawn = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in logprobs], device=input_ids.device)
    return sample._replace(logprobs=drawn)


@torch.no_grad()
def generate_batch(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    generators: Sequence[torch.Generator] | None,
    config: GenerationConfig,
    inputs: dict[str, Any],
) -> Sample:
    """transformers' `generate`, for every model: all rows go on until the last one ends. See `generate`."""
    from transformers import LogitsProcessorList

    noise = [] if generators is None else [PerSampleNoise(generators, config.temperature)]
    ends = _ends(model, config)
    sequences = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList(noise),
        eos_token_id=ends or None,
        pad_token_id=_pad(model, config, ends),
        cache_implementation=config.cache_implementation,
        **inputs,
    )
    return _joined(input_ids, attention_mask, sequences[:, input_ids.shape[1] :], ends)


def _joined(input_ids: Tensor, attention_mask: Tensor, sampled: Tensor, ends: Sequence[int]) -> Sample:
    """Sequences, their mask, and the mask of the actions among `sampled` [B, A]."""
    ended = torch.isin(sampled, torch.tensor(ends, device=sampled.device)).long().cumsum(1)
    # An end token counts, what follows it does not.
    action_mask = torch.nn.functional.pad(ended, (1, -1)) == 0
    mask = torch.cat([attention_mask, action_mask.to(attention_mask.dtype)], 1)
    return Sample(torch.cat([input_ids, sampled], 1), mask, action_mask)


def _ends(model: Any, config: GenerationConfig) -> list[int]:
    if config.eos_token_ids is not None:
        return list(config.eos_token_ids)
    known = model.generation_config.eos_token_id
    return [] if known is None else [known] if isinstance(known, int) else list(known)


def _pad(model: Any, config: GenerationConfig, ends: Sequence[int]) -> int:
    if config.pad_token_id is not None:
        return config.pad_token_id
    known = model.generation_config.pad_token_id
    return known if isinstance(known, int) else next(iter(ends), 0)
