"""The kit itself: how it reports, what it skips, which declarations it refuses; broken environments."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from rlinf.testing import EmbodiedPolicyTests, EnvironmentTests, LawBroken, RankPool, Support
from rlinf.testing.law import law, require_close


class Mlp(EmbodiedPolicyTests):
    model_config = {"model_type": "mlp_policy", "mlp_policy": {"state_dim": 7, "hidden": [8]}}
    image_size = 16
    supports = {"image": Support.no("it has no eyes"), "instruction": Support.no("it has no ears")}


def kit(**attributes: Any) -> Mlp:
    return type("Kit", (Mlp,), attributes)()


def test_a_broken_law_is_reported_in_full() -> None:
    class Some:
        supports: dict[str, Support] = {}

        @law(cause="the usual suspect")
        def test_twins(self) -> None:
            """Twins are equal."""
            require_close("the twins", [1.0, 2.0], [1.0, 2.5], atol=0.1)

    with pytest.raises(LawBroken) as caught:
        Some().test_twins()
    assert str(caught.value) == (
        "test_twins\n  law: Twins are equal.\n"
        "  found: the twins differ by up to 0.5 (at [1]); the tolerance is 0.1\n"
        "  usual cause: the usual suspect"
    )


def test_a_declared_gap_is_skipped_with_its_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"supports\['image'\] = no: it has no eyes"):
        kit().test_image_changes_the_action()
    with pytest.raises(LawBroken, match="other main_images, and the action moves by at most 1e-05 in 4 of 4"):
        kit(supports={}).test_image_changes_the_action()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("state", "other states move the actions by up to"),
        ("sft", "sft_forward is implemented"),
        ("rl", "default_forward is implemented"),
        ("values", "the result has prev_values"),
        ("entropy", "default_forward returns an entropy"),
        ("lora", "is_lora: true builds a model with adapters"),
        ("bf16", "no (a guess), but its laws hold"),
        ("fsdp", "no (a guess), but its laws hold"),
        ("loar", "there is no capability 'loar'. Did you mean 'lora'?"),
    ],
)
def test_a_wrong_declaration_fails(name: str, found: str, two_ranks: RankPool) -> None:
    with pytest.raises(LawBroken, match=re.escape(found)):
        kit(supports={name: Support.no("a guess")}).test_declared_gaps_are_gaps(two_ranks)


def test_a_gap_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="say why"):
        Support.no(" ")


def test_an_undeclared_gap_says_how_to_declare_it(
    monkeypatch: pytest.MonkeyPatch, two_ranks: RankPool
) -> None:
    from rlinf.models.embodiment.base_policy import BasePolicy
    from rlinf.models.embodiment.gaussian_policy import GaussianPolicy

    monkeypatch.setattr(GaussianPolicy, "sft_forward", BasePolicy.sft_forward)
    with pytest.raises(LawBroken, match=r"does not implement sft_forward.* supports = {'sft': Support.no"):
        kit().test_sft_loss_falls()
    declared = kit(supports={**Mlp.supports, "sft": Support.no("RL only")})
    declared.test_declared_gaps_are_gaps(two_ranks)
    with pytest.raises(pytest.skip.Exception, match="RL only"):
        declared.test_sft_loss_falls()


def test_a_stale_untrained_parameter_fails() -> None:
    with pytest.raises(LawBroken, match="which matches nothing that is untrained"):
        kit(untrained={r"trunk\..*": "a guess"}).test_gradient_reaches_every_trainable_parameter()


class Toy(gymnasium.Env):
    """A square that moves along a line, from left to right, towards a goal that the seed places."""

    def __init__(self) -> None:
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            main_images=gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            states=gymnasium.spaces.Box(-100, 100, (1,), np.float32),
            task_descriptions=gymnasium.spaces.Text(10, charset="go"),
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.place, self.count = float(self.np_random.uniform(-3, 3)), 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.place, self.count = self.place + float(action[0]), self.count + 1
        return self.observe(), -abs(self.place), False, self.count >= 20, {"success": abs(self.place) < 1}

    def observe(self) -> dict[str, Any]:
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, 4] = int(self.place * 20) % 250 + 1
        return {
            "main_images": image,
            "states": np.array([self.place], np.float32),
            "task_descriptions": "go",
        }


class Unseeded(Toy):
    """Draws from a generator of its own."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.place = float(np.random.default_rng().uniform(-3, 3))
        return self.observe(), {}


class AlwaysTheSame(Toy):
    """Ignores the seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        return super().reset(seed=0)


class Still(Toy):
    """Shows the same image at every step."""

    def observe(self) -> dict[str, Any]:
        obs = super().observe()
        return {**obs, "main_images": self.first} if self.count else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        obs, info = super().reset(seed=seed)
        self.first = obs["main_images"]
        return obs, info


class Endless(Toy):
    """Has no time limit."""

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        *rest, _, info = super().step(action)
        return (*rest, False, info)  # type: ignore[return-value]


class DoubleStates(Toy):
    """Returns float64 states."""

    def observe(self) -> dict[str, Any]:
        obs = super().observe()
        return {**obs, "states": obs["states"].astype(np.float64)}


class OneActionPerChunk(Toy):
    """chunk_step repeats the first action."""

    def chunk_step(self, actions: np.ndarray) -> tuple:
        rows = [self.step(actions[0]) for _ in actions]
        obs, *_, info = rows[-1]
        table = [np.array([row[i] for row in rows]) for i in (1, 2, 3)]
        return obs, *table, {**info, "steps": len(rows)}


class SharedPlace(Toy):
    """All instances of the process share their state."""

    where = [0.0]

    @property
    def place(self) -> float:
        return self.where[0]

    @place.setter
    def place(self, value: float) -> None:
        self.where[0] = value


ENVIRONMENTS: list[tuple[type[Toy], set[str]]] = [
    (Toy, set()),
    (Unseeded, {"test_seed_determines_the_episode", "test_vectorised_rollout_is_that_of_one"}),
    (AlwaysTheSame, {"test_seeds_differ", "test_images_vary"}),
    (Still, {"test_images_vary"}),
    (Endless, {"test_episodes_end"}),
    # VecEnv refuses such observations as well.
    (DoubleStates, {"test_spaces_describe_what_is_returned", "test_vectorised_rollout_is_that_of_one"}),
    (OneActionPerChunk, {"test_chunk_step_equals_steps"}),
    (SharedPlace, {"test_vectorised_rollout_is_that_of_one"}),
]


@pytest.mark.parametrize(("toy", "expected"), ENVIRONMENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_environment_fails_the_test_of_its_law(toy: type[Toy], expected: set[str]) -> None:
    class Kit(EnvironmentTests):
        env_type = "toy"
        episode_limit = 50

        def make(self) -> gymnasium.Env:
            return toy()

    failed = set()
    for name in dir(Kit):
        # The toy has no entry point, hence no spec that could name an expert.
        if name.startswith("test_") and name not in ("test_expert_succeeds", "test_declared_gaps_are_gaps"):
            try:
                getattr(Kit(), name)()
            except pytest.skip.Exception:
                assert name == "test_chunk_step_equals_steps"
            except LawBroken as error:
                assert str(error).startswith(name)
                failed.add(name)
    assert failed == expected
