"""LoRA: what is adapted, what is trainable, and that merging gives the model back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rlinf.models import get_model
from rlinf.models.embodiment.base_policy import BasePolicy
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.lora import apply_lora, is_lora_parameter, trainable_parameters
from rlinf.models.weights import load_pretrained
from safetensors.torch import save_file
from torch import nn

TINY = {"model_type": "tiny_vla", "tiny_vla": {"state_dim": 3, "dim": 32}}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.q_proj(self.norm(x))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TwoTowers(BasePolicy):
    """The same leaf names in two towers, a new projector and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.language = Tower(), Tower()
        self.projector = nn.Linear(8, 8)
        self.value_head = ValueHead(8, (4,))

    def default_forward(self, forward_inputs: dict, **kwargs: object) -> dict:
        return {"values": self.value_head(self.projector(self.language(self.vision(forward_inputs["x"]))))}


def trainable(model: nn.Module) -> set[str]:
    return {name for name in trainable_parameters(model) if not is_lora_parameter(name)}


def adapted(model: nn.Module) -> set[str]:
    return {name.partition(".lora_")[0] for name in trainable_parameters(model) if is_lora_parameter(name)}


def test_targets_are_full_paths() -> None:
    """A leaf name would reach the vision tower as well."""
    model = TwoTowers()
    paths = apply_lora(model, rank=2, targets=(r"language\..*\.q_proj",))
    assert paths == ["language.layers.0.q_proj", "language.layers.1.q_proj"]
    assert adapted(model) == set(paths)
    assert trainable(model) == {"value_head.mlp.0.weight", "value_head.mlp.0.bias", "value_head.mlp.2.weight"}


def test_default_targets_are_the_linear_layers_of_the_blocks() -> None:
    paths = apply_lora(TwoTowers(), rank=2)
    assert paths == [f"{tower}.layers.{i}.q_proj" for tower in ("vision", "language") for i in (0, 1)]


def test_what_the_checkpoint_lacks_is_trainable(tmp_path: Path) -> None:
    """The projector is new: the checkpoint of the backbone does not have it. Nobody lists it."""
    model = TwoTowers()
    backbone = nn.ModuleDict({"vision": model.vision, "language": model.language})
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    load_pretrained(backbone, str(tmp_path))
    apply_lora(model, rank=2)
    assert {name.partition(".")[0] for name in trainable(model)} == {"projector", "value_head"}


def test_what_transformers_did_not_find_in_the_checkpoint_is_trainable(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig
    from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path)

    class Vla(LlamaPreTrainedModel, BasePolicy):
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.model = LlamaModel(config)
            self.action_proj = nn.Linear(16, 7)
            self.post_init()

    model = Vla.from_pretrained(tmp_path)
    paths = apply_lora(model, rank=2)
    assert "model.layers.0.mlp.down_proj" in paths and len(paths) == 7
    assert trainable(model) == {"action_proj.weight", "action_proj.bias"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("nowhere",), "LoRA target 'nowhere' matches no module of TwoTowers"),
        ((r"vision\.layers\.0",), "matches vision.layers.0, a Block; expected linear"),
    ],
)
def test_bad_targets_are_named(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_lora(TwoTowers(), rank=2, targets=targets)
    with pytest.raises(ValueError, match="name LoRA targets in the ModelSpec"):
        apply_lora(nn.Sequential(nn.Tanh()), rank=2)


def test_alpha_and_dropout_act() -> None:
    x = {"x": torch.randn(4, 8)}
    outs = {}
    for alpha in (None, 2, 8):
        torch.manual_seed(0)
        model = TwoTowers()
        apply_lora(model, rank=2, alpha=alpha, dropout=0.5)
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                if is_lora_parameter(name):
                    parameter.normal_()
        outs[alpha] = model.eval()(forward_inputs=x)["values"]
    assert torch.equal(outs[None], outs[2]) and not torch.allclose(outs[2], outs[8])
    model.train()
    assert not torch.equal(model(forward_inputs=x)["values"], model(forward_inputs=x)["values"])


def test_training_changes_only_what_is_trainable() -> None:
    torch.manual_seed(0)
    model = get_model({**TINY, "is_lora": True, "lora_rank": 4, "lora_alpha": 8})
    plain = get_model(TINY)
    assert type(model) is type(plain)
    obs = {
        "main_images": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8),
        "states": torch.randn(4, 3),
        "task_descriptions": ["a", "b", "c", "d"],
    }
    _, result = model.predict_action_batch(obs)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    for _ in range(2):  # the first step moves only lora_B: lora_A has gradient 0 as long as B is 0
        out = model(forward_inputs=result["forward_inputs"])
        optimizer.zero_grad()
        (out["logprobs"].mean() + out["values"].mean()).backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(trainable_parameters(model))
    assert {name.partition(".")[0] for name in changed} == {"blocks", "action_head", "value_head"}
