"""Laws of action processors: what stands between the policy and an environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from rlinf.envs.action_utils import ActionError, prepare_actions
from rlinf.plugins import ActionProcessorSpec, get_host
from rlinf.testing.law import broken, difference, law, require
from rlinf.testing.material import act, generators
from rlinf.testing.subject import PolicySubject

Processor = Callable[..., Any]


class ActionLaws(PolicySubject):
    """The processors that apply to this model in each of `env_types`."""

    #: Further arguments of `prepare_actions` (`policy`, `action_scale`, ...) that the processors look at.
    action_context: ClassVar[Mapping[str, Any]] = {}

    @law(cause="assignment to a slice of the argument: work on a copy")
    def test_action_processors_leave_their_input(self) -> None:
        """An action processor does not change the array that it is given."""
        for env_type, spec, function in self._processors():
            actions = self._actions()
            before = actions.copy()
            function(actions, **self._context(env_type))
            gap = difference(actions, before)
            require(gap == 0, f"{spec.function} for {env_type!r} changed its input by up to {gap:.3g}")

    @law(cause="a dimension is dropped or added; declare keeps_shape=False where it must be")
    def test_action_processors_keep_the_shape(self) -> None:
        """Processed actions are finite float32 [B, chunk, action_dim], unless a processor declares
        keeps_shape=False."""
        self._require_env_types()
        actions = self._actions()
        for env_type in self.env_types:
            context = {"num_action_chunks": self.chunk, "action_dim": self.action_dim, **self.action_context}
            try:
                prepare_actions(actions, env_type, self.model_type, **context)
            except ActionError as error:
                broken(str(error))

    def _processors(self) -> Iterator[tuple[str, ActionProcessorSpec, Processor]]:
        self._require_env_types()
        host = get_host()
        for env_type in self.env_types:
            for spec in host.action_processors(env_type, self.model_type):
                yield env_type, spec, host.resolve(spec, "function")

    def _require_env_types(self) -> None:
        if not self.env_types:
            pytest.skip("env_types names no environment")

    def _actions(self) -> np.ndarray:
        return act(self.build(), self.observation(), "train", generators(4))[0].numpy()

    def _context(self, env_type: str) -> dict[str, Any]:
        """As `prepare_actions` gives it."""
        return {
            "env_type": env_type,
            "model_type": self.model_type,
            "num_action_chunks": self.chunk,
            "action_dim": self.action_dim,
            "action_scale": 1.0,
            "policy": None,
            "action_space": None,
            **self.action_context,
        }
