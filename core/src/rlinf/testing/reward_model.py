"""The conformance kit of scalar reward models: networks that give a text, with images or sounds, scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlinf.models.reward.scalar import preference_loss
from rlinf.testing.law import broken, difference, law, listed, require, require_close, require_tensor
from rlinf.testing.support import Support

Scores = dict[str, Tensor]
_ALL = slice(None)
#: What a model may declare not to have.
CAPABILITIES = {"bf16": "weights in bfloat16", "lora": "low-rank adapters"}


class RewardModelTests:
    """Subclass this in a test module; each inherited test is a law of scalar reward models.

    Define `build` and `rows`; for a model of images or sounds `inputs` as well. A tiny model is enough.
    """

    #: Names of the scores.
    heads: ClassVar[tuple[str, ...]] = ("reward",)
    atol: ClassVar[float] = 1e-5
    supports: ClassVar[Mapping[str, Support]] = {}

    def build(self, **options: Any) -> nn.Module:
        """A new model, whose weights torch's seed determines; options: `lora_rank` for adapters."""
        raise NotImplementedError("define build(**options): a new reward model")

    def rows(self) -> tuple[Tensor, Tensor]:
        """sequences, attention_mask: int64 [B, S], B of 2 or more, padded on the right, of different lengths.
        The two tokens at either end of a row's text differ."""
        raise NotImplementedError("define rows(): sequences and attention_mask")

    def inputs(self, sequences: Tensor, rows: slice) -> dict[str, Tensor]:
        """Further inputs for `sequences`, which are `rows` of `rows()`, padded in some way: images, sounds.
        The float tensors among them must matter."""
        return {}

    def make(self, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return self.build(**options).eval()

    def call(
        self,
        model: nn.Module,
        sequences: Tensor,
        mask: Tensor,
        rows: slice = _ALL,
        changed: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Scores:
        """Scores of the sequences with their inputs, some of which are changed."""
        return model(sequences, mask, **{**self.inputs(sequences, rows), **changed})

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Scores:
        return self.call(model, *self.rows())

    @law(cause="scores in the dtype of the weights, as [B, 1], or under other names")
    def test_scores_are_float32_by_head(self) -> None:
        """A call returns {head: float32 [B]}, finite."""
        scores = self.scores(self.make())
        require(tuple(scores) == self.heads, f"heads are {tuple(scores)} instead of {self.heads}")
        for name, score in scores.items():
            require_tensor(name, score, torch.float32, (len(self.rows()[0]),))

    @law(cause="dropout outside train(), or noise")
    def test_scoring_again_gives_the_same(self) -> None:
        """In eval() the same rows get the same scores, bit for bit."""
        model = self.make()
        first, second = self.scores(model), self.scores(model)
        require(all(torch.equal(first[n], second[n]) for n in first), f"first {first}, then {second}")

    @law(cause="pooling at the last column, positions that count padding, or a mask that is not passed on")
    def test_padding_changes_no_score(self) -> None:
        """Padding on the left, on the right, or none at all: the scores are the same."""
        model, (sequences, mask) = self.make(), self.rows()
        require(
            len(mask.sum(1).unique()) > 1 and bool((mask[:, 0] == 1).all()),
            "rows() must give rows of different lengths, padded on the right",
        )
        expected = self.scores(model)
        order = mask.argsort(dim=1, stable=True)  # padding first
        with torch.no_grad():
            left = self.call(model, sequences.gather(1, order), mask.gather(1, order))
            for name in self.heads:
                require_close(f"{name} with padding on the left", left[name], expected[name], self.atol)
            for row, length in enumerate(mask.sum(1).tolist()):
                alone = sequences[row : row + 1, :length]
                score = self.call(model, alone, torch.ones_like(alone), slice(row, row + 1))
                for name in self.heads:
                    got, want = score[name], expected[name][row : row + 1]
                    require_close(f"{name} of row {row} alone", got, want, self.atol)

    @law(cause="the wrong token is pooled, or the attention sees nothing of what comes before")
    def test_every_token_counts(self) -> None:
        """Another token at the beginning, and another at the end, each change the score."""
        model, (sequences, mask) = self.make(), self.rows()
        before = self.scores(model)
        index, first, last = torch.arange(len(mask)), self.text_positions(), mask.sum(1) - 1
        for where, column, neighbour in (("first", first, first + 1), ("last", last, last - 1)):
            changed = sequences.clone()
            changed[index, column] = sequences[index, neighbour]
            require(
                bool((changed != sequences).any(1).all()), f"rows(): two equal tokens at the {where} place"
            )
            with torch.no_grad():
                after = self.call(model, changed, mask)
            for name in self.heads:
                same = ((after[name] - before[name]).abs() < 1e-7).nonzero().flatten().tolist()
                require(not same, f"{name} of rows {same} does not feel the {where} token")

    def text_positions(self) -> Tensor:
        """int64 [B]: the column of each row's first token that stands for text; by default the first."""
        return torch.zeros(len(self.rows()[0]), dtype=torch.int64)

    @law(cause="the images or sounds never reach the language model")
    def test_inputs_change_the_score(self) -> None:
        """Other images or sounds give other scores."""
        model, (sequences, mask) = self.make(), self.rows()
        before = self.scores(model)
        for name, value in self.inputs(sequences, _ALL).items():
            if not value.is_floating_point():
                continue
            with torch.no_grad():
                after = self.call(model, sequences, mask, changed={name: -value})
            gap = max(difference(after[head], before[head]) for head in self.heads)
            require(gap > 1e-7, f"{name} with the opposite sign changes nothing")

    @law(cause="a head or a pooling that is not called, .detach(), or a frozen layer that still learns")
    def test_gradient_reaches_what_is_trainable(self) -> None:
        """The preference loss sends a gradient to every parameter that requires one, and to no other."""
        model = self.make().train()
        self.loss(model).backward()
        silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        require(not silent, f"no gradient reaches {listed(silent)}")
        wrong = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
        require(not wrong, f"frozen, with a gradient: {listed(wrong)}")

    @law(cause="the score is squashed, the head starts at zero under frozen pooling, or the loss has a sign")
    def test_preferences_are_learned(self) -> None:
        """60 steps of AdamW on one pair lift the first row's score above the second's, and back for the
        opposite pair."""
        for first, second in ((0, 1), (1, 0)):
            model = self.make().train()
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
            for _ in range(60):
                optimizer.zero_grad()
                self.loss(model, first, second).backward()
                optimizer.step()
            scores = self.scores(model.eval())
            for name, score in scores.items():
                gap = float(score[first] - score[second])
                require(gap > 0.1, f"{name} of row {first} minus that of row {second} is {gap:.3g}")

    def loss(self, model: nn.Module, first: int = 0, second: int = 1) -> Tensor:
        """Bradley-Terry loss of row `first` preferred to row `second`."""
        sequences, mask = self.rows()
        scores = self.call(model, sequences, mask)
        chosen = {name: score[first : first + 1] for name, score in scores.items()}
        rejected = {name: score[second : second + 1] for name, score in scores.items()}
        return preference_loss(chosen, rejected)["loss"]

    @law(cause="weights outside the state dict: a plain tensor attribute, a buffer with persistent=False")
    def test_weights_survive_a_file(self, tmp_path: Path) -> None:
        """A state dict that went through safetensors makes a model of another seed the same model."""
        model = self.make()
        expected = self.scores(model)
        state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
        save_file(state, tmp_path / "model.safetensors")
        torch.manual_seed(1)
        other = self.build().eval()
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        for name, score in self.scores(other).items():
            require_close(f"{name} after loading", score, expected[name], self.atol)

    @law(needs=["bf16"], cause="the head runs in the dtype of the weights and its result is cast")
    def test_bf16_weights_score_alike(self) -> None:
        """With weights in bfloat16 scores are float32, and within 5 % of the spread of those in float32 or
        0.05."""
        model, (sequences, mask) = self.make(), self.rows()
        expected = self.scores(model)
        inputs = self.inputs(sequences, _ALL)
        halves = {name: x.to(torch.bfloat16) for name, x in inputs.items() if x.is_floating_point()}
        with torch.no_grad():
            scores = self.call(model.to(torch.bfloat16), sequences, mask, changed=halves)
        for name, score in scores.items():
            require(score.dtype == torch.float32, f"{name} is {score.dtype}")
            spread = float(expected[name].max() - expected[name].min())
            require_close(f"{name} in bfloat16", score, expected[name], max(0.05, 0.05 * spread))

    @law(needs=["lora"], cause="heads that no LoRA target names are frozen with the base")
    def test_lora_trains_adapters_and_heads(self) -> None:
        """Under LoRA what is new trains (adapters, pooling, heads), and nothing of the backbone."""
        plain = dict(self.make().named_parameters())
        trainable = {n for n, p in self.make(lora_rank=2).named_parameters() if p.requires_grad}
        adapters = {name for name in trainable if "lora_" in name}
        require(bool(adapters), "there are no adapters")
        heads = trainable - adapters
        require(bool(heads), "no head trains")
        base = [name for name in heads if name in plain and name.startswith("backbone.")]
        require(not base, f"of the base trains {listed(base)}")

    @law(cause="a declaration that was copied, or that outlived its reason: remove it")
    def test_declared_gaps_are_gaps(self) -> None:
        """What `supports` declares missing exists as a capability and is missing indeed."""
        tries = {"bf16": self.test_bf16_weights_score_alike, "lora": self.test_lora_trains_adapters_and_heads}
        for name in self.supports:
            require(name in CAPABILITIES, f"there is no capability {name!r}; known: {listed(CAPABILITIES)}")
            try:
                tries[name].__wrapped__(self)  # type: ignore[attr-defined]
            except Exception:
                continue
            broken(f"supports[{name!r}] = no, but it works")
