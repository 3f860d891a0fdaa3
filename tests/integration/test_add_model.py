"""The published guide "Adding New Models with FSDP+HuggingFace": each of its sections runs as it is written.

`your_package` is a package of user code in a temporary folder; the class inherits from a transformers class.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rlinf.config import load_config
from rlinf.fsdp.wrap import get_fsdp_wrap_policy
from rlinf.models import get_model, get_model_config_and_processor, register_model
from rlinf.plugins import PluginError, PluginHost, get_host

PACKAGE = {
    "configuration.py": """
        from transformers import PretrainedConfig

        class YourModelConfig(PretrainedConfig):
            model_type = "your_model"

            def __init__(self, hidden_size=16, num_hidden_layers=2, state_dim=5, **kwargs):
                self.hidden_size = hidden_size
                self.num_hidden_layers = num_hidden_layers
                self.state_dim = state_dim
                super().__init__(**kwargs)
    """,
    "your_model_action_model.py": """
        from typing import Any

        import torch
        from torch import nn
        from transformers import PreTrainedModel
        from your_package.configuration import YourModelConfig

        from rlinf.models.embodiment.base_policy import BasePolicy
        from rlinf.models.embodiment.modules.value_head import ValueHead

        STD = 0.3

        class MyDecoderLayer(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.q_proj = nn.Linear(dim, dim)

            def forward(self, x):
                return x + torch.tanh(self.q_proj(x))

        class MyVisionTower(nn.Module):
            def __init__(self, dim):
                super().__init__()
                self.proj = nn.Linear(3, dim)

            def forward(self, images):
                return self.proj(images.to(self.proj.weight.dtype).mean(dim=(1, 2)) / 255)

        class MyProjector(nn.Linear):
            pass

        class YourModelForRLActionPrediction(PreTrainedModel, BasePolicy):
            config_class = YourModelConfig
            _no_split_modules = ["MyDecoderLayer"]

            def __init__(self, config, unnorm_key=None, action_dim=7):
                super().__init__(config)
                dim = config.hidden_size
                self.unnorm_key, self.action_dim = unnorm_key, action_dim
                self.vision = MyVisionTower(dim)
                self.projector = MyProjector(config.state_dim, dim)
                self.layers = nn.ModuleList(MyDecoderLayer(dim) for _ in range(config.num_hidden_layers))
                self.action_out = nn.Linear(dim, action_dim)
                self.value_head = ValueHead(dim, (8,))
                self.post_init()

            def _encode(self, inputs):
                dtype = self.projector.weight.dtype
                x = self.vision(inputs["observation/image"])
                x = x + self.projector(inputs["observation/state"].to(dtype))
                for layer in self.layers:
                    x = layer(x)
                return x, self.action_out(x).float()

            def default_forward(self, forward_inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
                x, mean = self._encode(forward_inputs)
                normal = torch.distributions.Normal(mean, STD)
                return {
                    "logprobs": normal.log_prob(forward_inputs["model_action"])[:, None],
                    "values": self.value_head(x),
                    "entropy": normal.entropy()[:, None],
                }

            @torch.no_grad()
            def predict_action_batch(self, env_obs, mode="train", compute_values=True, **kwargs):
                inputs = {
                    "observation/image": torch.as_tensor(env_obs["main_images"]),
                    "observation/state": torch.as_tensor(env_obs["states"]),
                }
                x, mean = self._encode(inputs)
                raw = mean + STD * torch.randn_like(mean) if mode == "train" else mean
                actions = raw.clamp(-1, 1)[:, None]
                inputs |= {"action": actions.flatten(1), "model_action": raw}
                out = self.default_forward(inputs)
                return actions, {
                    "prev_logprobs": out["logprobs"],
                    "prev_values": out["values"],
                    "forward_inputs": inputs,
                }
    """,
    "processing.py": """
        import numpy as np
        from transformers import (
            AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
        )
        from transformers.image_processing_utils import BaseImageProcessor
        from your_package.configuration import YourModelConfig

        class YourImageProcessor(BaseImageProcessor):
            model_input_names = ["pixel_values"]

            def __init__(self, scale=255.0, **kwargs):
                super().__init__(**kwargs)
                self.scale = scale

            def preprocess(self, images, **kwargs):
                return BatchFeature({"pixel_values": np.asarray(images) / self.scale})

            __call__ = preprocess

        class YourProcessor(ProcessorMixin):
            attributes = ["image_processor", "tokenizer"]
            image_processor_class = "AutoImageProcessor"
            tokenizer_class = "AutoTokenizer"

            def __init__(self, image_processor=None, tokenizer=None, **kwargs):
                super().__init__(image_processor, tokenizer, **kwargs)

            def __call__(self, text, images):
                return {**self.tokenizer(text, padding=True), **self.image_processor(images)}

        def config_and_processor(cfg):
            AutoConfig.register("your_model", YourModelConfig, exist_ok=True)
            AutoImageProcessor.register(YourModelConfig, YourImageProcessor, exist_ok=True)
            AutoProcessor.register(YourModelConfig, YourProcessor, exist_ok=True)
            path = cfg.tokenizer.tokenizer_model
            model_config = AutoConfig.from_pretrained(path)
            image_processor = YourImageProcessor.from_pretrained(path, trust_remote_code=True)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, padding_side="left")
            return model_config, YourProcessor(image_processor=image_processor, tokenizer=tokenizer)
    """,
    "__init__.py": "",
}
EXTENSION = """
    def build_my_model(cfg, torch_dtype):
        from your_package.your_model_action_model import (
            YourModelForRLActionPrediction,
        )
        return YourModelForRLActionPrediction.from_pretrained(
            cfg.model_path,
            torch_dtype=torch_dtype,
            hidden_size=cfg.hidden_size,
            unnorm_key=cfg.unnorm_key,
            action_dim=cfg.action_token_len,
            attn_implementation=cfg.attn_implementation,
            low_cpu_mem_usage=cfg.low_cpu_mem_usage,
            trust_remote_code=cfg.trust_remote_code,
        )

    def register():
        from rlinf.models import register_model

        register_model("your_model_type", build_my_model, category="embodied")
"""
YAML = """
    runner: {max_steps: 1}
    env: {env_type: tabletop, num_envs: 2, steps_per_rollout: 4}
    actor: {micro_batch_size: 2, global_batch_size: 2}
    model:
      model_type: "your_model_type"
      model_path: MODEL_PATH
      action_token_len: 7
      action_chunks_len: 1
      unnorm_key: your_action_key
      precision: "bf16"
      vocab_size: 32000
      hidden_size: 16
      image_size: [224, 224]
      is_lora: False
      low_cpu_mem_usage: True
      trust_remote_code: True
      attn_implementation: "eager"
    fsdp_config:
      wrap_policy:
        transformer_layer_cls_to_wrap:
          - "MyDecoderLayer"
        module_classes_to_wrap:
          - "MyVisionTower"
          - "MyProjector"
        no_split_names:
          - "value_head"
"""


@pytest.fixture
def user_code(tmp_path: Path, own_host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` with `your_package`, `rlinf_ext.py`, a checkpoint and the configuration file."""
    package = tmp_path / "code" / "your_package"
    package.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (package / name).write_text(textwrap.dedent(text))
    (package.parent / "rlinf_ext.py").write_text(textwrap.dedent(EXTENSION))
    monkeypatch.syspath_prepend(str(package.parent))

    from your_package.configuration import YourModelConfig
    from your_package.your_model_action_model import YourModelForRLActionPrediction

    torch.manual_seed(0)
    YourModelForRLActionPrediction(YourModelConfig()).save_pretrained(tmp_path / "checkpoint")
    text = textwrap.dedent(YAML).replace("MODEL_PATH", str(tmp_path / "checkpoint"))
    (tmp_path / "your_config.yaml").write_text(text)
    yield tmp_path
    for name in [n for n in sys.modules if n == "rlinf_ext" or n.partition(".")[0] == "your_package"]:
        del sys.modules[name]


def model_block(user_code: Path) -> DictConfig:
    return OmegaConf.load(user_code / "your_config.yaml").model  # type: ignore[union-attr]


def build_my_model() -> Any:
    import rlinf_ext  # type: ignore[import-not-found]

    return rlinf_ext.build_my_model


def observation(batch: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "main_images": rng.integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8),
        "states": rng.normal(size=(batch, 5)).astype(np.float32),
        "task_descriptions": ["go"] * batch,
    }


def test_section_1_registration(user_code: Path) -> None:
    """One registration makes the type pass validation and `get_model` build it."""
    with pytest.raises(PluginError, match="unknown model_type 'your_model_type'"):
        get_model(model_block(user_code))
    with pytest.raises(ValueError, match="unknown model_type 'your_model_type'"):
        load_config(user_code / "your_config.yaml")

    register_model("your_model_type", build_my_model(), category="embodied")

    assert load_config(user_code / "your_config.yaml").model.model_type == "your_model_type"
    model = get_model(model_block(user_code))
    assert type(model).__name__ == "YourModelForRLActionPrediction"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.unnorm_key == "your_action_key" and model.action_dim == 7


def test_section_1_extension_module_in_another_process(user_code: Path) -> None:
    """A process that only has RLINF_EXT_MODULE knows the model after `load_ext_module`, as workers do."""
    code = f"""
        from omegaconf import OmegaConf
        from rlinf.models import get_model
        from rlinf.plugins import load_ext_module
        load_ext_module()
        cfg = OmegaConf.load({str(user_code / "your_config.yaml")!r}).model
        print(type(get_model(cfg)).__name__)
    """
    env = {**os.environ, "RLINF_EXT_MODULE": "rlinf_ext", "PYTHONPATH": str(user_code / "code")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "YourModelForRLActionPrediction", done.stderr


def test_section_2_the_interface(user_code: Path) -> None:
    """`forward` dispatches; what `predict_action_batch` records is enough for `default_forward`."""
    register_model("your_model_type", build_my_model(), category="embodied")
    model = get_model(OmegaConf.merge(model_block(user_code), {"precision": "fp32"}))
    actions, result = model.predict_action_batch(observation(), mode="train")
    assert actions.shape == (3, 1, 7)
    out = model(forward_inputs=result["forward_inputs"])
    torch.testing.assert_close(out["logprobs"], result["prev_logprobs"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out["values"], result["prev_values"], atol=1e-5, rtol=0)
    (out["logprobs"].sum() + out["values"].sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(NotImplementedError, match=r"Prediction does not implement sft_forward"):
        model(forward_type="sft", batch={})


def test_section_3_the_configuration_file(user_code: Path) -> None:
    """The YAML is valid, its own keys reach the builder, and its wrap policy has priority."""
    register_model("your_model_type", build_my_model(), category="embodied")
    config = load_config(user_code / "your_config.yaml", ["model.precision=fp32"])
    model = get_model(config.model)
    plan = get_fsdp_wrap_policy(config.actor.fsdp_config, model)
    assert {unit.name: unit.cls for unit in plan.units} == {
        "vision": "MyVisionTower",
        "projector": "MyProjector",
        "layers.0": "MyDecoderLayer",
        "layers.1": "MyDecoderLayer",
        "value_head": "ValueHead",
    }
    assert all("fsdp_config.wrap_policy" in unit.rule for unit in plan.units)
    own = load_config(user_code / "your_config.yaml", ["~fsdp_config"])
    rules = {u.name: u.rule for u in get_fsdp_wrap_policy(own.actor.fsdp_config, model).units}
    assert "_no_split_modules" in rules["layers.0"] and "vision" not in rules
    typo = load_config(
        user_code / "your_config.yaml", ["fsdp_config.wrap_policy.module_classes_to_wrap=[MyVisionTowr]"]
    )
    with pytest.raises(ValueError, match=r"MyVisionTowr.*Did you mean 'MyVisionTower'"):
        get_fsdp_wrap_policy(typo.actor.fsdp_config, model)


def test_section_4_usage(user_code: Path) -> None:
    """The documented call, with these three keys only, and LoRA on top of it."""

    def build_my_model(cfg: DictConfig, torch_dtype: torch.dtype) -> Any:
        from your_package.configuration import YourModelConfig
        from your_package.your_model_action_model import YourModelForRLActionPrediction

        return YourModelForRLActionPrediction(YourModelConfig()).to(torch_dtype)

    register_model("your_model_type", build_my_model, category="embodied")
    cfg = OmegaConf.create(
        {
            "model_type": "your_model_type",
            "precision": "fp32",
            "is_lora": False,
        }
    )
    model = get_model(cfg)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    lora = get_model(OmegaConf.merge(cfg, {"is_lora": True, "lora_rank": 4}))
    names = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert any(".lora_A." in name for name in names) and "value_head.mlp.0.weight" in names
    assert "projector.weight" not in names
    actions, _ = lora.predict_action_batch(observation(), mode="eval")
    assert actions.shape == (3, 1, 7)

    register_model("broken", lambda cfg, torch_dtype: None)
    with pytest.raises(PluginError, match=r"'broken'.*must return a torch.nn.Module, it returned None"):
        get_model({"model_type": "broken"})


def test_section_5_notes(user_code: Path) -> None:
    """Actions of an unknown type pass `prepare_actions` unchanged; `force=True` replaces a built-in model."""
    from rlinf.envs.action_utils import prepare_actions

    register_model("your_model_type", build_my_model(), category="embodied")
    actions, _ = get_model(model_block(user_code)).predict_action_batch(observation(), mode="eval")
    executed = prepare_actions(actions, env_type="tabletop", model_type="your_model_type")
    np.testing.assert_array_equal(executed, actions.numpy())

    with pytest.raises(PluginError, match=r"'tiny_vla' is offered more than once(.|\n)*force=True"):
        register_model("tiny_vla", build_my_model(), category="embodied")
    register_model("tiny_vla", build_my_model(), category="embodied", force=True)
    cfg = OmegaConf.merge(model_block(user_code), {"model_type": "tiny_vla"})
    assert type(get_model(cfg)).__name__ == "YourModelForRLActionPrediction"
    row = next(row for row in get_host().discover() if (row.name, row.state) == ("tiny_vla", "forced"))
    assert row.distribution == "register_model()"


def test_config_and_processor(user_code: Path) -> None:
    """The older guide extends `get_model_config_and_processor`; here the registration names the function."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from your_package.processing import YourImageProcessor

    checkpoint = user_code / "checkpoint"
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "push": 2, "it": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(checkpoint)
    YourImageProcessor(scale=100.0).save_pretrained(checkpoint)
    register_model(
        "your_model_type",
        build_my_model(),
        category="embodied",
        processor="your_package.processing:config_and_processor",
    )
    cfg = OmegaConf.create(
        {"model": {"model_type": "your_model_type"}, "tokenizer": {"tokenizer_model": str(checkpoint)}}
    )
    model_config, processor = get_model_config_and_processor(cfg)
    assert type(model_config).__name__ == "YourModelConfig" and model_config.hidden_size == 16
    inputs = processor(["push it", "it"], np.full((2, 4, 4, 3), 50))
    assert inputs["input_ids"] == [[2, 3], [0, 3]] and np.all(inputs["pixel_values"] == 0.5)

    with pytest.raises(PluginError, match=r"model_type 'tiny_vla'.*declares no processor"):
        get_model_config_and_processor({"model": {"model_type": "tiny_vla"}})
    with pytest.raises(ValueError, match=r"cfg\.model\.model_type is missing"):
        get_model_config_and_processor({"tokenizer": {}})
