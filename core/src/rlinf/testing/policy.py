"""The conformance kit of embodied policies."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any, Final

from rlinf.plugins.errors import closest
from rlinf.testing.law import law, require
from rlinf.testing.laws_of_acting import ActingLaws, response
from rlinf.testing.laws_of_actions import ActionLaws
from rlinf.testing.laws_of_building import BuildingLaws
from rlinf.testing.laws_of_lora import LoraLaws
from rlinf.testing.laws_of_results import ResultLaws
from rlinf.testing.laws_of_training import TrainingLaws
from rlinf.testing.material import act, generators, recompute
from rlinf.testing.support import CAPABILITIES

#: Capabilities that only their laws can tell.
_PROBES: Final = {
    "bf16": ("test_logprobs_are_float32_under_bf16_weights", "test_recomputation_holds_under_bf16_weights"),
    "fsdp": ("test_two_ranks_train_as_one",),
}


class EmbodiedPolicyTests(ResultLaws, ActingLaws, TrainingLaws, LoraLaws, BuildingLaws, ActionLaws):
    """Subclass this in a test module; each inherited test is a law.

    Set `model_config`, the block `model` of a configuration with a model small enough to build within a
    second; `state_dim` and `image_size` if they are not 7 and 64; `env_types` to try action processors;
    `supports = {"lora": Support.no("why")}` for what the policy does not offer: the tests that need it are
    skipped with that reason, and fail where it turns out to work.
    """

    @law(cause="a declaration that was copied, or that outlived its reason: remove it")
    def test_declared_gaps_are_gaps(self, two_ranks: Callable[..., list[Any]]) -> None:
        """What `supports` declares missing exists as a capability and is missing indeed."""
        for name, support in self.supports.items():
            require(name in CAPABILITIES, f"there is no capability {name!r}.{closest(name, CAPABILITIES)}")
            if name in _PROBES:
                evidence = self._evidence_of_laws(name, two_ranks)
            else:
                evidence = getattr(self, f"_evidence_of_{name}")()
            require(not evidence, f"supports[{name!r}] = no ({support.reason}), but {evidence}")

    def _evidence_of_rl(self) -> str:
        return "default_forward is implemented" if self.build()._implements("default_forward") else ""

    def _evidence_of_sft(self) -> str:
        return "sft_forward is implemented" if self.build()._implements("sft_forward") else ""

    def _evidence_of_values(self) -> str:
        _, result = act(self.build(), self.observation())
        return "the result has prev_values" if result.get("prev_values") is not None else ""

    def _evidence_of_entropy(self) -> str:
        if not self.has("rl"):
            return ""
        policy = self.build()
        _, result = act(policy, self.observation(), "train", generators(4))
        out = recompute(policy, result["forward_inputs"])
        return "default_forward returns an entropy" if out.get("entropy") is not None else ""

    def _evidence_of_image(self) -> str:
        return self._evidence_of_change("main_images")

    def _evidence_of_state(self) -> str:
        return self._evidence_of_change("states")

    def _evidence_of_instruction(self) -> str:
        return self._evidence_of_change("task_descriptions")

    def _evidence_of_change(self, key: str) -> str:
        policy, obs, other = self.build(), self.plain_observation(), self.plain_observation(seed=1)
        other["task_descriptions"] = [self.instructions[1]] * 4
        gap = float(response(act(policy, obs), act(policy, {**obs, key: other[key]})).max())
        return f"other {key} move the actions by up to {gap:.3g}" if gap > self.atol else ""

    def _evidence_of_laws(self, capability: str, two_ranks: Callable[..., list[Any]]) -> str:
        """The laws that need the capability are the probe: it is missing if one of them fails in any way."""
        try:
            for name in _PROBES[capability]:
                test = unwrap(getattr(type(self), name))
                test(self, *([two_ranks] if capability == "fsdp" else []))
        except Exception:
            return ""
        return "its laws hold"

    def _evidence_of_lora(self) -> str:
        """LoRA that cannot be had shows as a ValueError when the model is built."""
        try:
            self._lora()
        except ValueError:
            return ""
        return "is_lora: true builds a model with adapters"
