"""A correct scalar reward model, and models with one defect each: `RewardModelTests` catches them.

A score is read from the mean over a text's tokens, to which a sound [B, 4] is added.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Name -> (class, the test that fails, what is wrong).
MODELS: dict[str, tuple[type[Scorer], str, str]] = {}


def _model(breaks: str = "", wrong: str = "") -> Callable[[type[Scorer]], type[Scorer]]:
    def add(kind: type[Scorer]) -> type[Scorer]:
        MODELS[kind.__name__] = (kind, breaks, wrong)
        return kind

    return add


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)
        self.sound = nn.Linear(4, 16)


class Scorer(nn.Module):
    def __init__(self, lora_rank: int = 0) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(16, 1)
        self.lora_A = self.lora_B = None
        if lora_rank:
            self.backbone.requires_grad_(False)
            self.lora_A = nn.Linear(16, lora_rank, bias=False)
            self.lora_B = nn.Linear(lora_rank, 16, bias=False)

    def pooled(self, sequences: Tensor, mask: Tensor) -> Tensor:
        weight = mask.to(self.head.weight.dtype).unsqueeze(-1)
        return (self.backbone.embedding(sequences) * weight).sum(1) / weight.sum(1)

    def features(self, sequences: Tensor, mask: Tensor, sound: Tensor) -> Tensor:
        x = self.pooled(sequences, mask) + self.backbone.sound(sound)
        adapted = 0 if self.lora_A is None or self.lora_B is None else self.lora_B(self.lora_A(x))
        return torch.tanh(self.backbone.mix(x) + adapted)

    def score(self, features: Tensor) -> Tensor:
        return self.head(features).squeeze(-1).float()

    def forward(self, sequences: Tensor, mask: Tensor, *, sound: Tensor) -> dict[str, Tensor]:
        return {"reward": self.score(self.features(sequences, mask, sound))}


@_model()
class Correct(Scorer):
    pass


@_model("test_scores_are_float32_by_head", "scores are [B, 1]")
class Column(Scorer):
    def score(self, features: Tensor) -> Tensor:
        return super().score(features)[:, None]


@_model("test_scoring_again_gives_the_same", "a little noise is added")
class Noisy(Scorer):
    def score(self, features: Tensor) -> Tensor:
        score = super().score(features)
        return score + 1e-6 * torch.rand_like(score)


@_model("test_padding_changes_no_score", "the mean counts padding")
class CountsPadding(Scorer):
    def pooled(self, sequences: Tensor, mask: Tensor) -> Tensor:
        return super().pooled(sequences, torch.ones_like(mask))


@_model("test_every_token_counts", "the last token is left out")
class IgnoresTheEnd(Scorer):
    def pooled(self, sequences: Tensor, mask: Tensor) -> Tensor:
        is_last = mask.cumsum(1) == mask.sum(1, keepdim=True)
        return super().pooled(sequences, mask * ~is_last)


@_model("test_inputs_change_the_score", "the sound is not used")
class Deaf(Scorer):
    def features(self, sequences: Tensor, mask: Tensor, sound: Tensor) -> Tensor:
        return super().features(sequences, mask, 0 * sound)


@_model("test_gradient_reaches_what_is_trainable", "the features are detached")
class Detached(Scorer):
    def score(self, features: Tensor) -> Tensor:
        return super().score(features.detach())


@_model("test_preferences_are_learned", "scores are squashed into [0, 0.05]")
class Squashed(Scorer):
    def score(self, features: Tensor) -> Tensor:
        return 0.05 * super().score(features).sigmoid()


@_model("test_weights_survive_a_file", "a scale that is no parameter")
class PlainTensor(Scorer):
    def __init__(self, lora_rank: int = 0) -> None:
        super().__init__(lora_rank)
        self.scale = float(torch.rand(()) + 1)

    def score(self, features: Tensor) -> Tensor:
        return self.scale * super().score(features)


@_model("test_bf16_weights_score_alike", "scores have the dtype of the weights")
class HalfScores(Scorer):
    def score(self, features: Tensor) -> Tensor:
        return self.head(features).squeeze(-1)


@_model("test_lora_trains_adapters_and_heads", "LoRA freezes the head as well")
class FrozenHead(Scorer):
    def __init__(self, lora_rank: int = 0) -> None:
        super().__init__(lora_rank)
        self.head.requires_grad_(not lora_rank)
