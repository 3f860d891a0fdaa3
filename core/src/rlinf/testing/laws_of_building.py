"""Laws of building: what determines a policy, and how its weights travel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf.fsdp.export import export_safetensors, load_safetensors
from rlinf.fsdp.weights import copy_into, pack, unpack
from rlinf.testing import remote
from rlinf.testing.law import broken, difference, law, listed, require, require_close
from rlinf.testing.material import act, generators, stir
from rlinf.testing.ranks import RankError
from rlinf.testing.subject import PolicySubject


class BuildingLaws(PolicySubject):
    """One configuration, one policy: here, twice, and in other processes."""

    @law(cause="weights drawn from another generator than torch's global one, which the run seeds")
    def test_building_twice_gives_equal_weights(self) -> None:
        """The configuration and torch's seed determine all weights."""
        first, again = self.build().state_dict(), self.build().state_dict()
        require(first.keys() == again.keys(), "the two builds have different tensors")
        other = [name for name in first if difference(first[name], again[name]) > 0]
        require(not other, f"{len(other)} of {len(first)} tensors differ: {listed(other)}")

    @law(cause="a module, tensor or cache at module or class level")
    def test_instances_share_nothing(self) -> None:
        """Two policies of one process share no parameter; building, training and using one leaves the other
        as it was."""
        one, obs = self.build(), self.observation()
        before, _ = act(one, obs)
        other = self.build(seed=1)
        held = {p.data_ptr(): name for name, p in one.named_parameters()}
        shared = [held[p.data_ptr()] for p in other.parameters() if p.data_ptr() in held]
        require(not shared, f"shared parameters: {listed(shared)}")
        stir(other, 2)
        act(other.train(), self.observation(3, seed=4), "train", generators(3))
        require_close(
            "actions before and after another instance was used", act(one, obs)[0], before, self.atol
        )

    @law(cause="a tensor that is neither parameter nor buffer, or a buffer with persistent=False")
    def test_weights_survive_export_and_load(self, tmp_path: Path) -> None:
        """Weights that are exported as safetensors and loaded into a policy of another seed make it the same
        policy."""
        one, other = self.build(), self.build(seed=1)
        export_safetensors(tmp_path / "weights", one.state_dict())
        other.load_state_dict(load_safetensors(tmp_path / "weights"), strict=True)
        self._require_equal(one, other)

    @law(cause="the builder does not look at model_path, or save_pretrained writes the backbone alone")
    def test_save_pretrained_comes_back(self, tmp_path: Path) -> None:
        """Where a policy offers `save_pretrained`, a policy of another seed that is built with that folder as
        `model_path` is the same policy."""
        one = self.build()
        save = getattr(one, "save_pretrained", None)
        if save is None:
            pytest.skip(f"{type(one).__name__} has no save_pretrained")
        save(tmp_path / "checkpoint")
        other = self.build(seed=1, awake=False, model_path=str(tmp_path / "checkpoint"))
        self._require_equal(one, other)

    @law(cause="state_dict() is overridden, or holds something else than the tensors of the model")
    def test_weights_reach_the_rollout(self) -> None:
        """Weights that are packed, sent and copied into a policy of another seed make it the same policy: so
        the trainer updates the rollout."""
        one, other = self.build(), self.build(seed=1)
        copy_into(other, unpack(*pack(one.state_dict())))
        self._require_equal(one, other)

    @law(cause="hash() of strings, the order of a set, or what only the driver's process has registered")
    def test_names_build_the_policy_in_another_process(self, two_ranks: Callable[..., list[Any]]) -> None:
        """A spawned process builds the same policy from the JSON of the configuration and the seed."""
        try:
            text = json.dumps(self.config())
        except TypeError as error:
            broken(f"model_config is not JSON: {error}")
        policy, obs = self.build(), self.observation()
        expected = remote.digests(policy)
        actions, _ = act(policy, obs)
        for rank, (found, theirs) in enumerate(_on(two_ranks, remote.build_and_act, text, obs)):
            require(found.keys() == expected.keys(), f"process {rank} builds a model with other tensors")
            other = [name for name in expected if found[name] != expected[name]]
            require(
                not other, f"process {rank}: {len(other)} of {len(found)} tensors differ: {listed(other)}"
            )
            require_close(f"actions here and in process {rank}", theirs, actions, self.atol)

    @law(
        needs=["fsdp"],
        cause="a rule of the wrap policy that matches nothing, a weight that is read outside the forward of "
        "its unit, or a statistic over the batch",
    )
    def test_two_ranks_train_as_one(self, two_ranks: Callable[..., list[Any]]) -> None:
        """Loss, gradient norm and weights after one AdamW step (lr 1e-3) are those of one unsharded process
        when two gloo ranks share model and batch by FSDP2: within 1e-5, of loss and norm relative to their
        size."""
        branch = "rl" if self.has("rl") else "sft"
        policy = self.build()
        if branch == "rl":
            _, result = act(policy, self.observation(), "train", generators(4))
            batch = {name: _numpy(value) for name, value in result["forward_inputs"].items()}
        else:
            batch = self.demonstrations()
        found = _on(two_ranks, remote.train_one_step, json.dumps(self.config()), branch, batch)[0]
        for key in ("loss", "grad_norm"):
            one, two = found["one"][key], found["two"][key]
            gap = abs(one - two) / max(1.0, abs(one))
            require(
                gap <= 1e-5, f"{key}: {one:.7g} on one rank, {two:.7g} on two; relative difference {gap:.3g}"
            )
        name, gap = found["weights"]
        require(gap <= 1e-5, f"after the step {name} differs by up to {gap:.3g}")

    def _require_equal(self, one: torch.nn.Module, other: torch.nn.Module) -> None:
        obs = self.observation()
        (actions, result), (theirs, their_result) = act(one, obs), act(other, obs)
        require_close("actions of the two policies", theirs, actions, self.atol)
        if result.get("prev_values") is not None:
            require_close(
                "values of the two policies", their_result["prev_values"], result["prev_values"], self.atol
            )


def _numpy(value: torch.Tensor) -> Any:
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _on(two_ranks: Callable[..., list[Any]], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    try:
        return two_ranks(function, *arguments)
    except RankError as error:
        broken(str(error))
