"""Several sequences in one row without padding, each of which sees itself alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch [B, S] as one row of its T valid tokens."""

    #: int64 [1, T].
    input_ids: Tensor
    #: int64 [1, T]: counts from 0 within each sequence, which is how attention knows where one ends.
    position_ids: Tensor
    #: int64 [T]: where each token was in the flattened batch.
    index: Tensor
    #: (B, S).
    shape: tuple[int, int]

    def unpack(self, values: Tensor) -> Tensor:
        """[1, T, ...] -> [B, S, ...], zero where there was padding."""
        batch, length = self.shape
        out = values.new_zeros((batch * length, *values.shape[2:]))
        return out.index_copy(0, self.index, values[0]).view(batch, length, *values.shape[2:])


def pack(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """Drop the padding, left or right, of int64 [B, S] under a mask [B, S] and join the rows."""
    index = attention_mask.flatten().nonzero().squeeze(-1)
    segments = torch.arange(1, len(input_ids) + 1, device=input_ids.device)[:, None].expand_as(input_ids)
    position_ids = reset_position_ids(segments.flatten()[index][None])
    return Packed(
        input_ids=input_ids.flatten()[index][None],
        position_ids=position_ids,
        index=index,
        shape=(input_ids.shape[0], input_ids.shape[1]),
    )


def reset_position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count from 0 at the start of every run of equal numbers; 0 where the number is 0.

    Args:
        attention_mask: int [B, S]: the number of the sequence that a token belongs to, 0 for padding.

    Returns:
        int64 [B, S].
    """
    mask = attention_mask.long()
    starts = torch.ones_like(mask, dtype=torch.bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    steps = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    first = torch.where(starts, steps, 0).cummax(dim=1).values
    return torch.where(mask > 0, steps - first, 0)
