"""The laws that every policy keeps, tried on this one. Run `pytest` in the folder of the plugin."""

from typing import ClassVar

from rlinf.testing import EmbodiedPolicyTests, Support


class TestHello(EmbodiedPolicyTests):
    model_config: ClassVar = {"model_type": "hello_policy", "action_dim": 4, "num_action_chunks": 3}
    image_size = 32
    env_types = ("tabletop",)
    supports: ClassVar = {"lora": Support.no("one hidden layer: there is no backbone to adapt")}
