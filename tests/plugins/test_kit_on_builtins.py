"""The conformance kit on the built-in policies, the example plugin and the embedded simulator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Install
from rlinf.testing import EmbodiedPolicyTests, EnvironmentTests, Support

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_plugin"
sys.path.insert(0, str(EXAMPLE / "tests"))

from test_hello import TestHello as ExampleTests  # noqa: E402 - its folder was just put on the path

BLIND = {
    "image": Support.no("it looks at the state alone"),
    "instruction": Support.no("it looks at the state alone"),
}


class TestTinyVla(EmbodiedPolicyTests):
    model_config = {
        "model_type": "tiny_vla",
        "action_dim": 4,
        "num_action_chunks": 3,
        "tiny_vla": {"state_dim": 7, "dim": 32, "value_hidden": [32]},
    }
    image_size = 32
    env_types = ("tabletop",)


class TestTinyVlaStateDependentStd(TestTinyVla):
    model_config = {
        **TestTinyVla.model_config,
        "tiny_vla": {**TestTinyVla.model_config["tiny_vla"], "state_dependent_std": True, "sft_loss": "nll"},
    }


class TestCnnPolicy(EmbodiedPolicyTests):
    model_config = {
        "model_type": "cnn_policy",
        "action_dim": 4,
        "num_action_chunks": 3,
        "cnn_policy": {"state_dim": 7, "channels": [8, 16], "hidden": 32},
    }
    image_size = 32
    env_types = ("tabletop",)
    supports = {"instruction": Support.no("it looks at image and state alone")}


class TestMlpPolicy(EmbodiedPolicyTests):
    model_config = {
        "model_type": "mlp_policy",
        "action_dim": 4,
        "num_action_chunks": 3,
        "mlp_policy": {"state_dim": 7, "hidden": [32, 32]},
    }
    image_size = 16
    env_types = ("tabletop",)
    supports = BLIND


class TestHello(ExampleTests):
    """The example plugin's own tests."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def installed(cls, install_editable: Install) -> None:
        install_editable("rlinf-plugin-hello", {"hello_policy": "rlinf_plugin_hello.plugin"}, EXAMPLE / "src")


class TestTabletop(EnvironmentTests):
    env_type = "tabletop"
    env_config = {"image_size": 32}
