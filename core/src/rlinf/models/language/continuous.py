"""Continuous batching: rows of a batch end and others take their place, over a cache that is allocated once.

transformers has continuous batching of its own (`generate_batch`). It samples with one generator for whatever
rows share a step, so that an answer would depend on its neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, StaticCache, StaticLayer

from rlinf.models.embodiment.sampling import categorical_per_sample, filter_logits
from rlinf.models.language.generation import GenerationConfig
from rlinf.models.language.logits import output_logits

#: Answers whose keys and values are computed anew at once: meanwhile they exist twice.
_PREFILLED: Final = 64


def fits(model: Any) -> bool:
    """Whether the model reads only, and all of its layers attend to everything before a token: positions and
    masks are those of such models."""
    layers = StaticCache(config=model.config, max_cache_len=1).layers
    reads_only = model.config.get_text_config() is model.config
    return reads_only and all(type(layer) is StaticLayer for layer in layers)


class Slots:
    """A static cache of `count` rows. A row's keys lie from column 0 on, whatever the length of its
    neighbours; those in use are always the first ones."""

    def __init__(self, model: Any, count: int, width: int) -> None:
        """width: columns, tokens of the longest row."""
        self.model: Final = model
        self.count: Final = count
        self.width: Final = width
        layers = len(StaticCache(config=model.config, max_cache_len=1).layers)
        self._layers: Final = [_SlotLayer(self) for _ in range(layers)]
        self._cache: Final = Cache(layers=list(self._layers))
        #: Where the step at hand writes: int64 [rows], the columns; and how many columns it reads.
        self.columns = torch.zeros(0, dtype=torch.long)
        self.reads = 0

    def prefill(self, prompts: Sequence[tuple[int, ...]], first: int, device: torch.device) -> Tensor:
        """Put prompts into the slots from `first` on; returns the logits [B, V] of what follows them.

        Equal prompts, such as those of a group, are computed once.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = torch.zeros(len(distinct), max(map(len, distinct)), dtype=torch.long)
        for row, prompt in zip(ids, distinct, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        cache = DynamicCache()
        # Padding is on the right, where no token of the row looks.
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        hidden = self.model.model(
            input_ids=ids.to(device), position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=device)
        for ours, theirs in zip(self._layers, cache.layers, strict=True):
            ours.put(first, theirs.keys[rows], theirs.values[rows])  # type: ignore[index, union-attr]
        last = torch.tensor([len(prompt) - 1 for prompt in distinct], device=device)
        hidden = hidden[torch.arange(len(distinct), device=device), last]
        return output_logits(self.model, hidden)[rows]

    def step(self, tokens: Tensor, columns: Tensor) -> Tensor:
        """One more token int64 [B] in each of the first B slots, at `columns` int64 [B]; returns the logits
        [B, V] of what follows it."""
        self.columns, self.reads = columns, int(columns.max()) + 1
        mask = torch.arange(self.reads, device=columns.device) <= columns[:, None]
        hidden = self.model.model(
            input_ids=tokens[:, None],
            attention_mask=mask.long(),
            position_ids=columns[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return output_logits(self.model, hidden[:, 0])

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy the first `columns` of a slot to another."""
        for layer in self._layers:
            layer.keys[target, :, :columns] = layer.keys[source, :, :columns]  # type: ignore[index]
            layer.values[target, :, :columns] = layer.values[source, :, :columns]  # type: ignore[index]


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values of all slots, [count, heads, width, H] each."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            x.new_zeros(self._slots.count, x.shape[1], self._slots.width, x.shape[3])
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    def put(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values [B, heads, S, H] of whole prompts into the slots from `first` on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, columns = slice(first, first + len(keys)), slice(keys.shape[2])
        self.keys[rows, :, columns] = keys  # type: ignore[index]
        self.values[rows, :, columns] = values  # type: ignore[index]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        columns, reads = self._slots.columns, self._slots.reads
        rows = torch.arange(len(columns), device=columns.device)
        assert self.keys is not None and self.values is not None, "prompts come first"
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        return self.keys[: len(rows), :, :reads], self.values[: len(rows), :, :reads]

    def get_seq_length(self) -> int:
        return self._slots.reads - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._slots.reads, 0

    def get_max_length(self) -> int:
        return self._slots.width


@torch.no_grad()
def generate_continuously(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    generators: Sequence[torch.Generator] | None,
    config: GenerationConfig,
    ends: Sequence[int],
    refresh: Callable[[], bool] | None = None,
) -> tuple[list[list[int]], list[list[float]] | None]:
    """Continuations of prompts, each up to its end token or to `max_new_tokens`; and, if the weights changed
    on the way, the log-probability of each token when it was drawn, else None.

    Up to `config.max_num_seqs` of them are under way at once. When one ends the next prompt takes its place
    before anything else is computed; when none waits the step is smaller.

    generators: one per prompt; None: the most likely tokens. refresh: see `ActorLanguage.sample`.
    """
    device = model.get_output_embeddings().weight.device
    count = min(len(prompts), config.max_num_seqs or len(prompts))
    slots = Slots(model, count, max(map(len, prompts)) + config.max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    waiting, live, changed = deque(range(len(prompts))), list[int](), False
    while waiting or live:
        first = len(live)
        if live and refresh is not None and refresh():
            changed, first = True, 0
            # Keys and values are those of the weights before.
            whole = [(*prompts[row], *answers[row]) for row in live]
            starts = range(0, len(whole), _PREFILLED)
            logits = torch.cat([slots.prefill(whole[i : i + _PREFILLED], i, device) for i in starts])
        elif waiting and first < count:
            live += [waiting.popleft() for _ in range(min(count - first, len(waiting)))]
            logits = slots.prefill([prompts[row] for row in live[first:]], first, device)
        else:
            first = 0
            tokens = torch.tensor([answers[row][-1] for row in live], device=device)
            columns = [_column(prompts[row], answers[row]) for row in live]
            logits = slots.step(tokens, torch.tensor(columns, device=device))
        if generators is not None or refresh is not None:
            logits = filter_logits(logits, temperature=config.temperature)
        if generators is None:
            drawn = logits.argmax(-1)
        else:
            drawn = categorical_per_sample(logits, [generators[row] for row in live[first:]])
        for row, token in zip(live[first:], drawn.tolist(), strict=True):
            answers[row].append(token)
        if refresh is not None:
            for row, (value,) in zip(live[first:], logits.gather(1, drawn[:, None]).tolist(), strict=True):
                logprobs[row].append(value)
        # From the back, so that the last slot in use is never one that is to be given up.
        for slot in reversed(range(first, len(live))):
            answer = answers[live[slot]]
            if answer[-1] in ends or len(answer) == config.max_new_tokens:
                row = live.pop()
                if slot < len(live):
                    live[slot] = row
                    slots.move(len(live), slot, _column(prompts[row], answers[row]))
    return answers, logprobs if changed else None


def _column(prompt: Sequence[int], answer: Sequence[int]) -> int:
    """Where a row's last token goes; the columns before it are written."""
    return len(prompt) + len(answer) - 1
