"""`rlinf convert` of language models: folders that transformers, peft and `model_path` load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from rlinf.cli.main import main
from rlinf.config import Config, load_config
from rlinf.fsdp.checkpoint import CheckpointStore
from rlinf.fsdp.engine import FsdpEngine
from rlinf.fsdp.state import load_model_state
from rlinf.models import get_model
from rlinf.models.language.text import pad_left
from rlinf.plugins import get_host
from rlinf.runners.train import make_plan
from rlinf.testing.tokenizer import byte_tokenizer
from torch import Tensor
from torch.testing import assert_close

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
VISION = {
    "depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
AUDIO = {
    "num_mel_bins": 8, "encoder_layers": 1, "d_model": 16, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "max_source_positions": 50,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "causal_lm": {"model_type": "qwen2", **TEXT, "tie_word_embeddings": True},
    "vision_language": {
        "model_type": "qwen2_vl",
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": VISION,
        "tie_word_embeddings": True,
    },
    "audio_language": {
        "model_type": "qwen2_audio",
        "text_config": {"model_type": "qwen2", **TEXT},
        "audio_config": AUDIO,
    },
}
PALIGEMMA = {
    "model_type": "paligemma",
    "text_config": {**TEXT, "head_dim": 8},
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "image_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": 8,
    },
    "tie_word_embeddings": True,
}  # fmt: skip
CLASSES = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "vision_language": transformers.AutoModelForImageTextToText,
    "audio_language": transformers.Qwen2AudioForConditionalGeneration,
}


def block(model_type: str, config: Any = None, **changes: Any) -> dict[str, Any]:
    """The block `model` of a small new model, with a value head."""
    own = {"characters": "0123456789+= \n", "config": config or NETWORKS[model_type], "max_prompt_length": 40}
    sizes = {"num_action_chunks": 5, "action_dim": 1, "add_value_head": True}
    return {"model_type": model_type, model_type: own, **sizes, **changes}


def loaded(folder: Path, model_type: str, **changes: Any) -> Any:
    """The policy of a folder."""
    own = {"max_prompt_length": 40}
    return get_model(block(model_type, **{model_type: own, "model_path": str(folder), **changes})).eval()


def media(model_type: str) -> dict[str, np.ndarray]:
    """Two pictures or sounds where the model takes them."""
    rng = np.random.default_rng(0)
    return {
        "causal_lm": {},
        "vision_language": {"main_images": rng.integers(0, 255, (2, 16, 16, 3), np.uint8)},
        "audio_language": {"audios": rng.normal(size=(2, 9_777)).astype(np.float32)},
    }[model_type]


@torch.no_grad()
def logits(policy: Any, model_type: str, network: Any = None) -> Tensor:
    """Of two prompts, by the policy's network or another one."""
    prompts, seen = policy.processor.prompts(["12+34=", "56+07="], media(model_type))
    ids, mask = pad_left(prompts, len(prompts[0]), 0)
    model = network or policy.actor.model
    return model.eval()(input_ids=ids, attention_mask=mask, **policy.processor.flat(ids, seen)).logits


def train_and_save(config_json: str, folder: str) -> None:
    """On a rank: two optimizer steps at a rate at which they show, and the checkpoint."""
    torch.set_num_threads(1)
    config = Config.model_validate(json.loads(config_json))
    torch.manual_seed(0)
    optim = config.actor.optim.model_copy(update={"lr": 1e-2, "lr_warmup_steps": 0})
    wrap = get_host().model_spec(config.model.model_type).wrap_policy
    engine = FsdpEngine(get_model(config.model), config.actor.fsdp_config, optim, wrap)
    rows = [{"prompt": "12+34=", "answer": "64"}, {"prompt": "56+07=", "answer": "36"}]
    batch = {"rows": rows, "action_is_pad": torch.zeros(2, 1, dtype=torch.bool)}
    for _ in range(2):  # an adapter's first half moves after the second has
        out = engine.model(forward_type="sft", batch={**batch, **media(config.model.model_type)})
        engine.backward(out["loss"] / 2)
        engine.optimizer_step()
    engine.save(folder)


def checkpoint(
    two_ranks: Callable[..., list[Any]], tmp_path: Path, model: dict[str, Any]
) -> tuple[Path, Any]:
    """A checkpoint of two ranks as a run leaves it, and the policy in it."""
    tree = {"defaults": ["language_grpo"], "model": model, "env": {"steps_per_rollout": 5}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    # What the shipped configuration says of its own small network.
    gone = [] if "causal_lm" in model else ["~model.causal_lm"]
    gone += ["~model.causal_lm.config", "~model.causal_lm.characters"] if "model_path" in model else []
    config = load_config(tmp_path / "run.yaml", gone)
    metadata = {"plan": make_plan(config).to_json(), "config": config.model_dump(mode="json")}
    with CheckpointStore(tmp_path).writing(1, metadata) as folder:
        two_ranks(train_and_save, config.model_dump_json(), str(folder))
    trained = get_model(config.model)
    load_model_state(trained, tmp_path / "checkpoints/step_1")
    return tmp_path / "checkpoints/step_1", trained


@pytest.mark.parametrize(
    ("model_type", "network"), [*NETWORKS.items(), pytest.param("vision_language", PALIGEMMA, id="paligemma")]
)
def test_a_small_model_becomes_a_folder_of_transformers(two_ranks, tmp_path, model_type, network):
    path, trained = checkpoint(two_ranks, tmp_path, block(model_type, config=network))
    target = tmp_path / "hf"
    assert main(["convert", str(path), str(target), "--max-shard-size", "20KB"]) == 0
    assert len(list(target.glob("model-*.safetensors"))) > 1
    expected = logits(trained, model_type)
    theirs = CLASSES[model_type].from_pretrained(target)
    ours = loaded(target, model_type)
    # The tokenizer of characters is a file now, and gives the same ids.
    assert_close(logits(ours, model_type, theirs), expected, atol=1e-6, rtol=0)
    assert_close(logits(ours, model_type), expected, atol=1e-6, rtol=0)
    ids = trained.processor.answer("4 2")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(target)
    assert ours.processor.answer("4 2") == ids == [*tokenizer.encode("4 2"), tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "4 2"
    assert theirs.generation_config.eos_token_id == ids[-1]
    tied = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    assert tied == network.get("tie_word_embeddings", False)
    with pytest.raises(ValueError, match="'x' in '1x' is not in the alphabet"):
        ours.processor.answer("1x")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder of transformers: a tied model, and a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.Qwen2Config(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=True)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    (folder / "notes.md").write_text("not mine")
    return folder


@pytest.fixture(scope="module")
def adapted(two_ranks, base, tmp_path_factory):
    own = {"max_prompt_length": 40}
    model = block("causal_lm", causal_lm=own, model_path=str(base), is_lora=True, lora_rank=2)
    return checkpoint(two_ranks, tmp_path_factory.mktemp("lora"), model)


def test_merged_adapters(adapted, base, tmp_path):
    path, trained = adapted
    target = tmp_path / "merged"
    assert main(["convert", str(path), str(target)]) == 0
    expected = logits(trained, "causal_lm")
    assert (logits(loaded(base, "causal_lm"), "causal_lm") - expected).abs().max() > 1e-3
    assert_close(logits(loaded(target, "causal_lm"), "causal_lm"), expected, atol=1e-5, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template == "{{ messages[0].content }}" and not (target / "notes.md").exists()


def test_kept_adapters_are_pefts(adapted, base, tmp_path):
    from peft import PeftModel

    path, trained = adapted
    target = tmp_path / "kept"
    assert main(["convert", str(path), str(target), "--lora", "keep"]) == 0
    expected, before = logits(trained, "causal_lm"), logits(loaded(base, "causal_lm"), "causal_lm")
    assert_close(logits(loaded(target, "causal_lm"), "causal_lm"), before, atol=1e-6, rtol=0)
    adapters = str(target / "lora_adapter")
    ours = loaded(target, "causal_lm", is_lora=True, lora_rank=2, lora_path=adapters)
    assert_close(logits(ours, "causal_lm"), expected, atol=1e-6, rtol=0)
    network = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(target), adapters)
    assert_close(logits(ours, "causal_lm", network), expected, atol=1e-6, rtol=0)
