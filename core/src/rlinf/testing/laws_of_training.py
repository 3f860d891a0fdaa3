"""Laws of training: gradients, and the imitation loss."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from rlinf.testing.law import law, listed, require, require_close, require_tensor
from rlinf.testing.material import act, generators, recompute, rows, sft_loss
from rlinf.testing.subject import PolicySubject


class TrainingLaws(PolicySubject):
    """Gradients of the losses, and what `sft_forward` counts."""

    @law(
        cause="a detach, a no_grad, or a layer that the forward pass leaves out; a parameter that is there "
        "for the checkpoint's sake belongs into `untrained`"
    )
    def test_gradient_reaches_every_trainable_parameter(self) -> None:
        """Log-probabilities, values and entropy (without RL: the SFT loss) send a gradient to every parameter
        that requires one, except those that `untrained` names."""
        policy = self.build().train()
        self._objective(policy).backward()
        names = [name for name, p in policy.named_parameters() if p.requires_grad]
        reached = _reached(policy)
        excused = {pattern: [n for n in names if re.fullmatch(pattern, n)] for pattern in self.untrained}
        for pattern, matches in excused.items():
            stale = not matches or reached.issuperset(matches)
            require(not stale, f"untrained names {pattern!r}, which matches nothing that is untrained")
        dead = [n for n in names if n not in reached and not any(n in m for m in excused.values())]
        require(not dead, f"no gradient in {len(dead)} of {len(names)} parameters: {listed(dead)}")

    @law(cause="requires_grad_ in a forward pass, or gradients that are written by hand")
    def test_no_gradient_reaches_frozen_parameters(self) -> None:
        """A parameter with requires_grad = False stays without a gradient; the others keep theirs."""
        policy = self.build().train()
        frozen = [name for name, _ in policy.named_parameters()][::2]
        for name in frozen:
            policy.get_parameter(name).requires_grad_(False)
        self._objective(policy).backward()
        leaked = [name for name in frozen if policy.get_parameter(name).grad is not None]
        require(
            not leaked, f"{len(leaked)} of {len(frozen)} frozen parameters got a gradient: {listed(leaked)}"
        )
        thawed = [name for name in frozen if policy.get_parameter(name).requires_grad]
        require(not thawed, f"the forward pass unfroze {listed(thawed)}")

    @law(needs=["sft"], cause="an overflow, a mean over nothing, or a loss per sample")
    def test_sft_loss_is_a_finite_scalar(self) -> None:
        """sft_forward returns a finite float32 scalar loss with a gradient."""
        loss = sft_loss(self.build(), self.demonstrations())
        require_tensor("the loss", loss, torch.float32, ())
        require(loss.requires_grad, "the loss carries no gradient")

    @law(
        needs=["sft"],
        cause="the loss is cut off from the weights (item(), detach, no_grad), or its target is wrong",
    )
    def test_sft_loss_falls(self) -> None:
        """Overfitting one batch by AdamW lowers the SFT loss by at least 30 %."""
        policy, batch = self.build().train(), self.demonstrations()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=self.overfit_lr, weight_decay=0)
        losses = []
        for step in range(self.overfit_steps):
            loss = sft_loss(policy, batch, seed=step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        few = max(1, len(losses) // 8)  # a loss that draws noise is judged by means
        first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
        require(
            first - last >= 0.3 * abs(first),
            f"from {first:.4g} to {last:.4g} in {len(losses)} steps of lr {self.overfit_lr:.3g}",
        )

    @law(needs=["sft"], cause="action_is_pad is not looked at, or only in a part of the loss")
    def test_sft_ignores_padded_steps(self) -> None:
        """What stands in padded steps of `actions` does not change the SFT loss."""
        policy, batch = self.build(), _padded(self.demonstrations(), row=0)
        clean = sft_loss(policy, batch)
        other = torch.where(batch["action_is_pad"].unsqueeze(-1), 3.0, batch["actions"])
        require_close(
            "losses of other padded steps", sft_loss(policy, {**batch, "actions": other}), clean, self.atol
        )

    @law(
        needs=["sft"],
        cause="the masked sum is divided by the number of all steps (.mean()); the trainer weights each part "
        "by its counted steps",
    )
    def test_sft_loss_is_a_mean_over_counted_steps(self) -> None:
        """A sample whose every step is padded changes nothing: the loss is a mean over counted entries.
        (A loss that draws noise is tried on the share of a whole batch only: it must not shrink by half.)"""
        policy, batch = self.build(), self.demonstrations(2)
        padded, alone = _padded(batch, row=1, first=0), rows(batch, [0])
        with_padding, expected = sft_loss(policy, padded), sft_loss(policy, alone)
        if _draws_noise(policy, alone):
            draws = [sft_loss(policy, padded, seed) / sft_loss(policy, alone, seed) for seed in range(20)]
            ratio = float(torch.stack(draws).detach().median())
            require(ratio > 0.7, f"with a padded sample the loss is {ratio:.2f} of that without")
            return
        require_close("losses with and without a padded sample", with_padding, expected, self.atol)

    @law(needs=["sft"], cause="a mean over nothing: clamp the count to at least 1")
    def test_sft_of_padding_alone_is_zero(self) -> None:
        """When every step of a batch is padded the loss is 0 with finite gradients, not NaN: such parts occur
        when a batch is dealt out to the ranks."""
        policy, batch = self.build(), self.demonstrations()
        batch["action_is_pad"][:] = True
        loss = sft_loss(policy, batch)
        require(float(loss.detach()) == 0, f"the loss is {float(loss.detach()):.4g}")
        loss.backward()
        bad = [n for n, p in policy.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        require(not bad, f"gradients are not finite: {listed(bad)}")

    def _objective(self, policy: nn.Module) -> Tensor:
        """A scalar that depends on all that the policy can be trained by."""
        if not self.has("rl"):
            return sft_loss(policy, self.demonstrations())
        _, result = act(policy, self.observation(), "train", generators(4))
        out = recompute(policy, result["forward_inputs"])
        return torch.stack([out[key].sum() for key in ("logprobs", "values", "entropy") if key in out]).sum()


def _reached(policy: nn.Module) -> set[str]:
    return {n for n, p in policy.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


def _padded(batch: dict, row: int, first: int | None = None) -> dict:
    """The batch with the steps of a row padded from `first` on (default: the second half, at least one)."""
    pad = batch["action_is_pad"].clone()
    steps = pad.shape[1]
    pad[row, (steps - max(1, steps // 2)) if first is None else first :] = True
    return {**batch, "action_is_pad": pad}


def _draws_noise(policy: nn.Module, batch: dict) -> bool:
    return bool(sft_loss(policy, batch, seed=0) != sft_loss(policy, batch, seed=1))


def gradients_of(value: Tensor, policy: nn.Module) -> set[str]:
    """Names of the parameters that `value` depends on."""
    trainable = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    names, parameters = zip(*trainable, strict=True)
    found = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return {n for n, g in zip(names, found, strict=True) if g is not None and bool((g != 0).any())}
