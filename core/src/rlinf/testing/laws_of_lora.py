"""Laws of low-rank adapters: what is frozen, what stays trainable, and that they merge."""

from __future__ import annotations

import torch
from torch import nn

from rlinf.models.embodiment.base_policy import BasePolicy
from rlinf.models.lora import is_lora_parameter, merge_lora, trainable_parameters
from rlinf.testing.law import difference, law, listed, require, require_close
from rlinf.testing.laws_of_training import gradients_of
from rlinf.testing.material import act, generators, recompute, sft_loss, stir
from rlinf.testing.subject import PolicySubject


class LoraLaws(PolicySubject):
    """The model under `is_lora: true`."""

    @law(
        needs=["lora"], cause="train() or forward sets requires_grad, or the adapters' targets are heads only"
    )
    def test_lora_freezes_the_base(self) -> None:
        """Under LoRA the adapted layers are frozen, stay so under train(), and an optimizer step over all
        parameters leaves what is frozen as it was."""
        policy = self._lora().train()
        frozen = {n: p.detach().clone() for n, p in policy.named_parameters() if not p.requires_grad}
        adapted = [name for name, _ in policy.named_parameters() if ".base_layer." in name]
        warm = [name for name in adapted if name not in frozen]
        require(bool(adapted), "no layer is adapted")
        require(
            not warm, f"{len(warm)} of {len(adapted)} weights of adapted layers are trainable: {listed(warm)}"
        )
        self._step(policy)
        moved = [
            name for name, before in frozen.items() if not torch.equal(policy.get_parameter(name), before)
        ]
        require(not moved, f"an optimizer step moved {len(moved)} frozen parameters: {listed(moved)}")

    @law(
        needs=["lora", "rl", "values"],
        cause="a head of one's own without `_is_policy_head = True`; ValueHead and GaussianHead have it",
    )
    def test_lora_keeps_new_heads_trainable(self) -> None:
        """Parameters that the values alone depend on, which no backbone brings, are trainable under LoRA."""
        plain = self.build()
        _, result = act(plain, self.observation(), "train", generators(4))
        out = recompute(plain, result["forward_inputs"])
        own = gradients_of(out["values"], plain) - gradients_of(out["logprobs"], plain)
        lora = dict(self._lora().named_parameters())
        # An adapted layer of a critic's tower has another name under LoRA, and its adapter learns.
        frozen = sorted(name for name in own if name in lora and not lora[name].requires_grad)
        require(not frozen, f"frozen: {listed(frozen)}")

    @law(
        needs=["lora"], cause="weights are copied or cached at build time, or the initialisation draws differ"
    )
    def test_lora_starts_as_the_plain_model(self) -> None:
        """Before training, adapters change nothing."""
        plain, lora, obs = self.build(), self._lora(), self.observation()
        _copy_base(plain, lora)
        require_close("actions with and without adapters", act(lora, obs)[0], act(plain, obs)[0], self.atol)

    @law(needs=["lora"], cause="F.linear(x, layer.weight) goes past the adapter: call the layer")
    def test_lora_adapters_act(self) -> None:
        """Adapters with other weights change the actions."""
        # Awake: behind a layer that starts at zero no adapter could act.
        lora, obs = self._lora(awake=True), self.observation()
        before, _ = act(lora, obs)
        _stir_adapters(lora)
        gap = difference(act(lora, obs)[0], before)
        require(gap > self.atol, f"the actions move by {gap:.3g}")

    @law(needs=["lora"], cause="a layer that is used in two ways, or whose weight is read past the adapter")
    def test_lora_merges_back(self) -> None:
        """Merged adapters give the same actions, in a model with the plain model's tensors."""
        lora, obs = self._lora(), self.observation()
        _stir_adapters(lora)
        adapted, _ = act(lora, obs)
        merge_lora(lora)
        names, plain = set(lora.state_dict()), set(self.build().state_dict())
        require(names == plain, f"tensors of only one of the two models: {listed(sorted(names ^ plain))}")
        require_close("actions before and after merging", act(lora, obs)[0], adapted, 10 * self.atol)

    def _lora(self, *, awake: bool = False) -> BasePolicy:
        rank = self.model_config.get("lora_rank", 4)
        return self.build(awake=awake, is_lora=True, lora_rank=rank)

    def _step(self, policy: nn.Module) -> None:
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.is_floating_point()], lr=0.1)
        if self.has("rl"):
            _, result = act(policy, self.observation(), "train", generators(4))
            recompute(policy, result["forward_inputs"])["logprobs"].mean().backward()
        else:
            sft_loss(policy, self.demonstrations()).backward()
        optimizer.step()


def _stir_adapters(model: nn.Module) -> None:
    adapters = [name for name in trainable_parameters(model) if is_lora_parameter(name)]
    for _ in range(5):  # their product is small beside the weights that they change
        stir(model, 1, adapters)


def _copy_base(plain: nn.Module, lora: nn.Module) -> None:
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*lora.named_parameters(), *lora.named_buffers()]:
            if not is_lora_parameter(name):
                tensor.copy_(tensors[name.replace(".base_layer.", ".")])
