"""prepare_actions: processors found through a real module's hook, and the checks on what they return."""

from __future__ import annotations

import importlib
import sys

import gymnasium
import numpy as np
import pytest
import torch
from rlinf.envs.action_utils import ActionError, prepare_actions

PLUGIN = """
import numpy as np
from rlinf.plugins import ActionProcessorSpec, hookimpl

SEEN = {}

def binarise(actions, **context):
    SEEN.update(context)
    actions[..., -1] = np.where(actions[..., -1] > 0.5, 1.0, -1.0)  # in place: on a copy
    return actions

def halve(actions, **context):
    return actions / 2

def four_of_seven(actions, **context):
    return np.concatenate([actions[..., :3], actions[..., -1:]], axis=-1)

def to_nan(actions, **context):
    return actions * np.nan

def drop_one(actions, **context):
    return actions[1:]

def crash(actions, **context):
    raise KeyError("no such gripper")

@hookimpl
def rlinf_action_processors():
    def spec(env, model, name, **kw):
        return ActionProcessorSpec(env_type=env, model_type=model, function=f"acting_plugin:{name}", **kw)
    return [
        spec("arm", "my_vla", "binarise"),
        spec("arm", "*", "halve"),
        spec("other", "my_vla", "four_of_seven", keeps_shape=False),
        spec("undeclared", "my_vla", "four_of_seven"),
        spec("nan", "my_vla", "to_nan"),
        spec("drop", "my_vla", "drop_one", keeps_shape=False),
        spec("crash", "my_vla", "crash"),
    ]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch, own_host):
    (tmp_path / "acting_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("acting_plugin")
    own_host.add_extension(module)
    yield module
    del sys.modules["acting_plugin"]


def raw(dim: int = 7) -> np.ndarray:
    return np.linspace(0, 1, 2 * 3 * dim, dtype=np.float32).reshape(2, 3, dim)


def test_without_a_processor_actions_pass_unchanged():
    actions = raw()
    np.testing.assert_array_equal(prepare_actions(actions, "arm", "my_vla"), actions)
    tensor = torch.from_numpy(actions).to(torch.bfloat16).requires_grad_()
    result = prepare_actions(tensor, "nowhere", "unknown", 3, 7, 1.0, "widowx_bridge")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, actions, atol=4e-3)


def test_processors_apply_in_order_and_never_change_the_input(plugin):
    actions = raw()
    before = actions.copy()
    result = prepare_actions(actions, "arm", "my_vla", 3, 7, action_scale=0.5, policy="left", tool="cup")
    expected = before.copy()
    expected[..., -1] = np.where(before[..., -1] > 0.5, 1, -1)
    np.testing.assert_array_equal(result, expected / 2)
    np.testing.assert_array_equal(actions, before)
    assert plugin.SEEN["action_scale"] == 0.5 and plugin.SEEN["policy"] == "left"
    assert plugin.SEEN["tool"] == "cup" and plugin.SEEN["env_type"] == "arm"
    np.testing.assert_array_equal(prepare_actions(actions, "arm", "another"), before / 2)


def test_a_declared_change_of_shape_meets_the_action_space(plugin):
    space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    assert prepare_actions(raw(), "other", "my_vla", action_space=space).shape == (2, 3, 4)
    with pytest.raises(ActionError, match=r"takes actions of 4 dimensions, model_type 'my_vla' gives 7"):
        prepare_actions(raw(), "arm", "my_vla", action_space=space)


@pytest.mark.parametrize(
    ("env_type", "match"),
    [
        ("undeclared", r"four_of_seven .* turned float32 \[2, 3, 7\] into float32 \[2, 3, 4\]; declare"),
        ("nan", r"acting_plugin:to_nan .* returned hold NaN"),
        ("drop", r"acting_plugin:drop_one .* a batch of 2 into 1"),
        ("crash", r"acting_plugin:crash .* failed: KeyError: 'no such gripper'"),
    ],
)
def test_a_bad_processor_is_named(plugin, env_type, match):
    with pytest.raises(ActionError, match=match):
        prepare_actions(raw(), env_type, "my_vla")


@pytest.mark.parametrize(
    ("actions", "kwargs", "match"),
    [
        (np.zeros((2, 7)), {}, r"must be \[B, chunk, dim\], got float32 \[2, 7\]"),
        (np.full((1, 1, 2), np.inf), {}, "hold NaN or infinity"),
        (np.zeros((2, 3, 7)), {"num_action_chunks": 4}, "num_action_chunks is 4"),
        (np.zeros((2, 3, 7)), {"action_dim": 6}, "action_dim is 6"),
    ],
)
def test_bad_policy_actions_are_refused(actions, kwargs, match):
    with pytest.raises(ActionError, match=match):
        prepare_actions(actions, "arm", "my_vla", **kwargs)
