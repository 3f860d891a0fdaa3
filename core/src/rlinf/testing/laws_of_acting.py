"""Laws of how a policy acts: what the action depends on, and what it does not."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch

from rlinf.testing.law import difference, law, require, require_close
from rlinf.testing.material import act, generators, rows
from rlinf.testing.subject import PolicySubject

#: What `predict_action_batch` returns.
Acted = tuple[torch.Tensor, dict[str, Any]]


class ActingLaws(PolicySubject):
    """What actions, log-probabilities and values may depend on."""

    @law(cause="a statistic over the batch, or a reshape that mixes samples")
    def test_batch_equals_singles(self) -> None:
        """A sample in a batch gives what it gives alone."""
        policy, obs = self.build(), self.plain_observation()
        together = _outcome(act(policy, obs))
        for i in range(4):
            alone = _outcome(act(policy, rows(obs, [i])))
            for key in together:
                require_close(
                    f"{key} of sample {i}, alone and among 4", alone[key][0], together[key][i], self.atol
                )

    @law(
        needs=["instruction"],
        cause="a mean over tokens without the mask, attention that sees padding, or positions counted from "
        "the padded end",
    )
    def test_padding_changes_nothing(self) -> None:
        """Longer instructions of others in the batch change nothing for a sample."""
        policy, obs = self.build(), self.observation()
        short, long = min(self.instructions, key=len), max(self.instructions, key=len)
        beside_short = _outcome(act(policy, {**obs, "task_descriptions": [short] * 4}))
        beside_long = _outcome(act(policy, {**obs, "task_descriptions": [short, long, long, long]}))
        for key in beside_short:
            what = f"{key} of {short!r} beside {long!r} and beside itself"
            require_close(what, beside_long[key][0], beside_short[key][0], self.atol)

    @law(cause="mode is not looked at, or noise is drawn whenever generators are given")
    def test_eval_is_deterministic(self) -> None:
        """In mode "eval" the same observation gives the same actions, bit for bit, whatever generators are
        given and whatever the global seed is."""
        policy, obs = self.build(), self.observation()
        first, _ = act(policy, obs)
        for draws in (None, generators(4), generators(4, seed=9)):
            again, _ = act(policy, obs, "eval", draws, seed=3)
            require(
                bool(torch.equal(first, again)),
                f"actions differ by up to {difference(first, again):.3g} between two calls",
            )

    @law(cause="state that is kept between calls: running statistics, a cache, a recurrent state")
    def test_calls_leave_no_trace(self) -> None:
        """What a policy does for one observation does not depend on the observations before it."""
        policy, obs = self.build(), self.observation()
        first = _outcome(act(policy, obs))
        act(policy, self.observation(3, seed=5), "train", generators(3))
        again = _outcome(act(policy, obs))
        for key in first:
            require_close(f"{key} before and after another observation", again[key], first[key], self.atol)

    @law(needs=["image"], cause="a constant in the place of the image, or a normalisation that removes it")
    def test_image_changes_the_action(self) -> None:
        """Another image changes the action, or (where actions are tokens) its log-probability."""
        self._require_sensitive("main_images", 255 - self.observation()["main_images"])

    @law(needs=["state"], cause="the state is dropped, or normalised to a constant")
    def test_state_changes_the_action(self) -> None:
        """Another state changes the action, or (where actions are tokens) its log-probability."""
        self._require_sensitive("states", self.observation()["states"] + np.float32(0.5))

    @law(needs=["instruction"], cause="one prompt for all, or an attention mask that hides the words")
    def test_instruction_changes_the_action(self) -> None:
        """Another instruction changes the action, or (where actions are tokens) its log-probability."""
        texts = self.observation()["task_descriptions"]
        self._require_sensitive("task_descriptions", [*texts[1:], texts[0]])

    @law(cause="torch.randn without generator=: use rlinf.models.embodiment.sampling.randn_per_sample")
    def test_draws_come_from_the_given_generators(self) -> None:
        """In mode "train" the given generators decide every draw: the same ones give the same actions
        whatever the global seed is, others give others."""
        policy, obs = self.build(), self.observation()
        first, _ = act(policy, obs, "train", generators(4), seed=1)
        again, _ = act(policy, obs, "train", generators(4), seed=2)
        other, _ = act(policy, obs, "train", generators(4, seed=100), seed=1)
        gap = difference(first, again)
        require(gap <= self.atol, f"equal generators, another global seed: actions differ by up to {gap:.3g}")
        same = (first == other).flatten(1).all(1)
        require(
            not bool(same.any()), f"other generators give the same actions in {int(same.sum())} of 4 samples"
        )

    @law(cause="one generator for the whole batch, or draws in an order that depends on the neighbours")
    def test_draws_are_per_sample(self) -> None:
        """A sample's draws come from its own generator alone: neither its place in the batch nor the other
        generators matter."""
        policy, obs = self.build(), self.plain_observation()
        order = [2, 0, 3, 1]
        first, _ = act(policy, obs, "train", generators(4))
        moved, _ = act(policy, rows(obs, order), "train", [generators(4)[i] for i in order])
        require_close("actions in another order of the batch", moved, first[order], self.atol)
        beside = [*generators(1), *generators(3, seed=50)]
        require_close(
            "actions of sample 0 beside other generators",
            act(policy, obs, "train", beside)[0][0],
            first[0],
            self.atol,
        )

    @law(cause="torch.manual_seed, numpy.random or random inside the policy")
    def test_global_generators_are_left_alone(self) -> None:
        """With given generators a call leaves the global ones of torch, numpy and random as they were."""
        policy, obs = self.build(), self.observation()
        for mode in ("train", "eval"):
            before = _global_states()
            policy.predict_action_batch(dict(obs), mode=mode, generators=generators(4))
            moved = [name for name, state in _global_states().items() if state != before[name]]
            require(not moved, f"mode {mode!r} moved the global generator of {', '.join(moved)}")

    def _require_sensitive(self, key: str, value: Any) -> None:
        policy, obs = self.build(), self.observation()
        gaps = response(act(policy, obs), act(policy, {**obs, key: value}))
        still = [i for i, gap in enumerate(gaps.tolist()) if not gap > self.atol]
        require(
            not still,
            f"other {key}, and the action moves by at most {self.atol:.3g} in {len(still)} of 4 samples "
            f"(largest change: {float(gaps.max()):.3g})",
        )


def response(base: Acted, changed: Acted) -> torch.Tensor:
    """By how much, per sample [B], the actions of two calls differ; where those of a sample are equal, by how
    much their log-probabilities do: the likeliest token may stay the likeliest."""
    pairs: list[tuple[Any, Any]] = [(base[0], changed[0])]
    recorded = (base[1].get("prev_logprobs"), changed[1].get("prev_logprobs"))
    if recorded[0] is not None and recorded[1] is not None:
        pairs.append(recorded)
    gaps = [(one - other).abs().flatten(1).amax(1) for one, other in pairs]
    return torch.where(gaps[0] > 0, gaps[0], gaps[-1])


def _outcome(acted: Acted) -> dict[str, torch.Tensor]:
    actions, result = acted
    numbers = {key: result[key] for key in ("prev_logprobs", "prev_values") if result.get(key) is not None}
    return {"actions": actions, **numbers}


def _global_states() -> dict[str, bytes]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),
        "random": pickle.dumps(random.getstate()),
    }
