"""Parts of rlinf_dexvla: prompts, image patches, statistics, checkpoints, answers."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rlinf.config import ConfigError, load_config
from rlinf.config.schema import OptimConfig
from rlinf.data.stats import NormStats, RunningStats, write_norm_stats
from rlinf.fsdp.optim import parameter_groups
from rlinf.models.lora import apply_lora
from rlinf_dexvla.build import build
from rlinf_dexvla.checkpoint import load_dit, original_state
from rlinf_dexvla.config import CameraConfig, DexvlaConfig
from rlinf_dexvla.export import export
from rlinf_dexvla.normalizer import load_normalizer
from rlinf_dexvla.plugin import rlinf_model_spec
from rlinf_dexvla.prompt import ImageGeometry, PromptBuilder, chat_text
from rlinf_dexvla.scaledp import ScaleDP
from rlinf_dexvla.stats import Stats, read_stats, write_original
from rlinf_dexvla.tokenizers import WordTokenizer
from rlinf_dexvla.vlm import encode
from safetensors.torch import save_file
from test_dexvla_kit import TINY
from torch.testing import assert_close

STATS = Stats(
    state_mean=(0.5,) * 7, state_std=(2.0,) * 7, action_min=(-3.0,) * 4, action_max=(1.0, 2.0, 3.0, 4.0)
)


def configuration(model_path: str | None = None, **changes):
    config = {
        "model_type": "dexvla",
        "model_path": model_path,
        "action_dim": 4,
        "num_action_chunks": 3,
        "add_value_head": False,
        "dexvla": {**TINY, "tokenizer": "words", **changes},
    }
    return OmegaConf.create(config)


def policy(seed: int = 0, model_path: str | None = None, **changes):
    torch.manual_seed(seed)
    return build(configuration(model_path, **changes), torch.float32).eval()


def observation(batch: int = 3) -> dict:
    rng = np.random.default_rng(0)
    return {
        "main_images": rng.integers(0, 256, (batch, 56, 56, 3), dtype=np.uint8),
        "states": rng.normal(size=(batch, 7)).astype(np.float32),
        "task_descriptions": ["push the cube", "go", "fold the shirt twice"][:batch],
    }


# -- prompts -------------------------------------------------------------------------------------------------


def test_words_are_one_token_and_all_text_comes_back():
    tokenizer = WordTokenizer()
    text = "<|im_start|>user\nkäse<|im_end|>"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.token_id("<|im_start|>") and ids[-1] == tokenizer.token_id("<|im_end|>")
    assert tokenizer.decode(ids) == "user\nkäse"
    answer = "over to the red cubeNext action:<|im_end|>"
    assert len(tokenizer.encode(answer)) == 7 and tokenizer.decode(tokenizer.encode(answer)) == answer[:-10]
    assert tokenizer.decode(tokenizer.encode("thered  the Red,on")) == "thered  the Red,on"
    assert max(tokenizer.encode(answer)) < tokenizer.vocab_size


def test_chat_text_is_qwens_format():
    assert chat_text("go", [2, 1], "Be kind.") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
        "go<|im_end|>\n<|im_start|>assistant\n"
    )


def builder(**changes) -> PromptBuilder:
    options = {"system_prompt": None, "use_reasoning": True, "max_prompt_tokens": 64, **changes}
    return PromptBuilder(WordTokenizer(), [1], **options)


def test_prompts_are_padded_left_and_answers_right():
    prompt = builder()
    ids = prompt.prompts(["go", "go there"])
    assert (ids[0, :6] == prompt.pad_id).all() and ids[0, 6] != prompt.pad_id
    answers = prompt.answers(["left. ", ""])
    assert answers[0, -1] == prompt.end_id and answers[1, -1] == prompt.pad_id
    assert prompt.texts(answers) == ["left.", ""]
    assert prompt.texts(builder(use_reasoning=False).answers(["ignored"])) == [""]


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"has \d+ tokens .*max_prompt_tokens admits 64"):
        builder().prompts(["x" * 60])


def test_patches_are_those_of_transformers_image_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    cameras = [CameraConfig(height=84, width=112), CameraConfig(key="wrist_images", height=56, width=56)]
    geometry = ImageGeometry(cameras, patch=14, merge=2, temporal=2)
    rng = np.random.default_rng(0)
    obs = {
        "main_images": rng.integers(0, 256, (2, 84, 112, 3), dtype=np.uint8),
        "wrist_images": rng.integers(0, 256, (2, 56, 56, 3), dtype=np.uint8),
    }
    processor = Qwen2VLImageProcessorPil()
    flat = [obs[key][i] for i in range(2) for key in ("main_images", "wrist_images")]
    theirs = processor(flat, return_tensors="pt")
    images = geometry.resize(obs, torch.device("cpu"))
    ours = geometry.patches(images, processor.image_mean, processor.image_std)
    assert_close(ours, theirs["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(geometry.grid(2, torch.device("cpu")), theirs["image_grid_thw"])
    assert geometry.tokens == [12, 4]


def test_a_missing_camera_is_named():
    geometry = ImageGeometry([CameraConfig(key="extra_view_images.1")], patch=14, merge=2, temporal=2)
    with pytest.raises(ValueError, match="'extra_view_images' in the observation; it has states"):
        geometry.resize({"states": 0}, torch.device("cpu"))
    with pytest.raises(ValueError, match="view 1 asked for"):
        geometry.resize({"extra_view_images": np.zeros((1, 1, 9, 9, 3), np.uint8)}, torch.device("cpu"))


def test_config_refuses_what_cannot_be():
    for changes, message in (
        ({"cameras": [{"key": "left"}]}, "expected main_images"),
        ({"cameras": [{}, {}]}, "given twice"),
        ({"rl": {"finetuned_steps": 6}}, "exceeds num_inference_timesteps"),
        ({"use_vlm": False, "rl": {"train_reasoning": True}}, "needs use_vlm"),
    ):
        with pytest.raises(ValueError, match=message):
            DexvlaConfig.model_validate({**TINY, **changes})


# -- statistics ----------------------------------------------------------------------------------------------


def write_stats(path, **actions):
    rng = np.random.default_rng(0)
    running = {"state": RunningStats(), "actions": RunningStats()}
    rows = {"state": rng.normal(size=(14, 3)), "actions": rng.uniform(-2, 5, size=(14, 2))}
    for key, values in rows.items():
        for part in np.split(values, [5]):
            running[key].update(part)
    write_norm_stats(path, {key: stats.result() for key, stats in running.items()})
    return rows


def test_statistics_of_rlinf_data_stats_are_read(tmp_path):
    rows = write_stats(tmp_path)
    stats = read_stats(tmp_path)
    np.testing.assert_allclose(stats.state_mean, rows["state"].mean(0))
    np.testing.assert_allclose(stats.state_std, rows["state"].std(0))
    np.testing.assert_allclose(stats.action_min, rows["actions"].min(0) - 1e-4)
    np.testing.assert_allclose(stats.action_max, rows["actions"].max(0) + 1e-4)
    normalizer = load_normalizer(str(tmp_path / "norm_stats.json"), state_dim=3, action_dim=2)
    actions = torch.tensor(rows["actions"])
    scaled = normalizer.actions(actions)
    assert scaled.abs().max() <= 1
    assert_close(normalizer.robot_actions(scaled), actions.float(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="states have 3 dimensions there, the model has 7"):
        load_normalizer(str(tmp_path), state_dim=7, action_dim=2)


def test_statistics_without_a_range_are_refused(tmp_path):
    one = NormStats(mean=np.zeros(2), std=np.ones(2))
    write_norm_stats(tmp_path, {"state": one, "actions": one})
    with pytest.raises(ValueError, match="min and max of `actions`: compute it with rlinf data stats"):
        read_stats(tmp_path)


def test_the_originals_pickle_is_read(tmp_path):
    names = ("action_mean", "action_std", "action_min", "action_max", "qpos_mean", "qpos_std", "example_qpos")
    data = {name: np.arange(3, dtype=np.float32) + i for i, name in enumerate(names)}
    path = tmp_path / "dataset_stats.pkl"
    path.write_bytes(pickle.dumps(data))
    assert read_stats(path).state_mean == (4.0, 5.0, 6.0)
    # As numpy 1 wrote it.
    old = pickle.dumps(data, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(old)
    assert read_stats(path).state_std == (5.0, 6.0, 7.0)


class Malicious:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_names_code_is_refused_and_does_not_run(tmp_path, capsys):
    path = tmp_path / "dataset_stats.pkl"
    path.write_bytes(pickle.dumps({"qpos_mean": Malicious()}))
    with pytest.raises(ValueError, match=r"dataset_stats\.pkl: .*builtins\.print"):
        read_stats(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["[1]", "{", '{"norm_stats": {"state": {"mean": [1]}}}'])
def test_bad_statistics_name_the_file(tmp_path, content):
    path = tmp_path / "norm_stats.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"norm_stats\.json"):
        read_stats(path)


def test_what_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "dataset_stats.pkl"
    write_original(path, replace(STATS, state_mean=(float("nan"),)))
    with pytest.raises(ValueError, match=r"dataset_stats\.pkl: qpos_mean: expected a list of finite"):
        read_stats(path)


# -- checkpoints ---------------------------------------------------------------------------------------------


def checkpoint(folder, state) -> str:
    folder.mkdir()
    save_file({name: x.clone().contiguous() for name, x in state.items()}, folder / "model.safetensors")
    return str(folder)


def test_the_originals_names_load(tmp_path):
    one = policy(seed=1)
    path = checkpoint(tmp_path / "original", original_state(one.state_dict()))
    other = policy(seed=2, model_path=path)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_base_model_leaves_new_parts_fresh_and_says_so(tmp_path, caplog):
    state = {
        k: v for k, v in original_state(policy(1).state_dict()).items() if k.startswith(("visual", "model"))
    }
    with caplog.at_level(logging.WARNING):
        policy(seed=2, model_path=checkpoint(tmp_path / "qwen", state))
    assert "policy_head.pos_embed" in caplog.text and "reasoning_film.scale_fc.weight" in caplog.text


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    state = original_state(policy(1).state_dict())
    del state["policy_head.pos_embed"]
    state["visual.extra"] = torch.zeros(1)
    state["model.norm.weight"] = torch.zeros(7)
    with pytest.raises(ValueError) as error:
        policy(seed=2, model_path=checkpoint(tmp_path / "bad", state))
    text = str(error.value)
    assert "lacks: policy_head.pos_embed" in text and "has unknown: vlm.model.visual.extra" in text
    assert "norm.weight is (7,) there and (32,) here" in text


def test_stage_1_files_load_without_their_conditions_embedding(tmp_path, caplog):
    one, other = policy(1).policy_head, policy(2)
    nets = {f"policy.noise_pred_net.{name}": x for name, x in one.state_dict().items()}
    nets["policy.backbones.0.weight"] = torch.zeros(2)
    path = tmp_path / "dit.ckpt"
    torch.save({"nets": {"nets": nets}}, path)
    before = other.policy_head.cond_obs_emb.weight.clone()
    with caplog.at_level(logging.WARNING):
        load_dit(other, str(path))
    assert torch.equal(other.policy_head.blocks[1].attn.qkv.weight, one.blocks[1].attn.qkv.weight)
    assert torch.equal(other.policy_head.cond_obs_emb.weight, before)
    assert "policy.backbones.0.weight" in caplog.text and "cond_obs_emb.weight" in caplog.text


def exported(folder, one, **changes):
    folder.mkdir()
    export(one.state_dict(), configuration(**changes), folder, max_shard_bytes=10**9)
    return str(folder)


def test_an_export_is_the_next_stages_model_path(tmp_path):
    """With its architecture and its statistics, which the configuration then need not give."""
    write_original(tmp_path / "task.pkl", STATS)
    one = policy(seed=1, stats=str(tmp_path / "task.pkl"))
    path = exported(tmp_path / "export", one, stats=str(tmp_path / "task.pkl"))
    for other in (policy(seed=2, model_path=path), policy(seed=2, model_path=path, vlm={})):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"vlm\.text\.hidden_size: 64 here, 32 in .*config\.json"):
        policy(model_path=path, vlm={"text": {"hidden_size": 64}})


def test_an_export_of_stage_1_is_what_stage_2_begins_with(tmp_path):
    one, other = policy(seed=1, use_vlm=False), policy(seed=2)
    load_dit(other, exported(tmp_path / "export", one, use_vlm=False))
    assert torch.equal(other.policy_head.combine[0].weight, one.policy_head.combine[0].weight)


def test_every_trainable_parameter_is_in_one_group_under_lora():
    """Adapters and the rest have learning rates of their own, and only matrices decay."""
    one = policy()
    apply_lora(one, rank=2, targets=rlinf_model_spec("dexvla").lora_targets)
    config = OptimConfig(lr=1e-4, non_lora_lr=2e-5, weight_decay=0.1)
    groups = {group["name"]: group for group in parameter_groups(one, config)}
    assert set(groups) == {"lora/decay", "policy/decay", "policy/no_decay"}
    assert [groups[name]["lr"] for name in groups] == [1e-4, 2e-5, 2e-5]
    assert groups["policy/decay"]["weight_decay"] == 0.1 and groups["policy/no_decay"]["weight_decay"] == 0
    names = [name for group in groups.values() for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, p in one.named_parameters() if p.requires_grad)
    assert {"reasoning_film.scale_fc.weight", "input_action_proj.mlps.0.weight"} < set(
        groups["policy/decay"]["param_names"]
    )
    assert all(".lora_" in name and name.startswith("vlm.") for name in groups["lora/decay"]["param_names"])


def test_frozen_parts_are_in_no_group():
    one = policy(freeze_backbone=True, freeze_vision_tower=True)
    names = [name for group in parameter_groups(one, OptimConfig()) for name in group["param_names"]]
    assert names and not any(name.startswith("vlm.") for name in names)
    language = policy(freeze_vision_tower=True)
    names = [name for group in parameter_groups(language, OptimConfig()) for name in group["param_names"]]
    assert any(name.startswith("vlm.model.language_model.") for name in names)
    assert not any(name.startswith("vlm.model.visual.") for name in names)


def test_a_stage_1_file_that_runs_code_or_fits_nothing_is_refused(tmp_path):
    path = tmp_path / "dit.ckpt"
    torch.save({"nets": Malicious()}, path)
    with pytest.raises(ValueError, match=r"dit\.ckpt: cannot be read"):
        load_dit(policy(), str(path))
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match=r"expected \['nets'\]\['nets'\], got weights"):
        load_dit(policy(), str(path))
    torch.save({"nets": {"nets": {"other.weight": torch.zeros(1)}}}, path)
    with pytest.raises(ValueError, match=r"holds no ScaleDP: other\.weight"):
        load_dit(policy(), str(path))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_stages_configurations_differ_where_the_originals_do(stage):
    given = ["data.train_data_paths=episodes", "model.model_path=qwen"]
    config = load_config(f"dexvla_stage{stage}", given[: 1 + (stage == 2)])
    own = config.model.model_extra["dexvla"]
    assert (own.get("use_vlm", True), own.get("load_pretrain_dit")) == {
        1: (False, None),
        2: (True, "runs/dexvla_stage1/export"),
        3: (True, None),
    }[stage]
    assert config.model.model_path == {1: None, 2: "qwen", 3: "runs/dexvla_stage2/export"}[stage]
    small = load_config(f"dexvla_tabletop_stage{stage}")
    assert small.model.model_extra["dexvla"].get("use_vlm", True) == (stage > 1)
    assert small.sft is not None and small.sft.export and config.sft.export


def test_a_stage_without_its_data_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"(?s)data\.train_data_paths.*Missing mandatory value"):
        load_config("dexvla_stage1")


def test_an_unknown_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"config\.json: model_type 'llama'; expected one of qwen2_vl"):
        policy(model_path=str(tmp_path))


# -- the policy ----------------------------------------------------------------------------------------------


def test_scaledp_starts_as_the_identity_without_noise():
    torch.manual_seed(0)
    head = ScaleDP(cond_dim=8, state_dim=2, action_dim=3, horizon=4, depth=2, width=16, num_heads=2)
    x, cond, states = torch.randn(2, 4, 3), torch.randn(2, 8), torch.randn(2, 2)
    assert (head(x, torch.tensor([3, 50]), cond, states) == 0).all()
    tokens = head.x_embedder(x)
    assert torch.equal(head.blocks[0](tokens, torch.randn(2, 16)), tokens)


def test_generated_hidden_states_are_those_of_a_forward_over_the_answer():
    """The cache, the batch and left padding change nothing, and the last token is included as in training."""
    one = policy()
    inputs = one.inputs(observation())
    with torch.no_grad():
        generated = one._generate(inputs, None, False)
        ids = torch.cat([inputs["prompts"], generated.answers], dim=1)
        hidden = encode(one.vlm, ids, ids != one.prompt.pad_id, one._vision(inputs))
    width = inputs["prompts"].shape[1]
    is_answer = generated.answers != one.prompt.pad_id
    assert_close(generated.answer[is_answer], hidden[:, width:][is_answer], atol=1e-5, rtol=1e-5)
    predicted = one.vlm.lm_head(hidden[:, width - 1 : -1]).argmax(-1)
    assert torch.equal(predicted[is_answer], generated.answers[is_answer])


def test_texts_come_back_and_reasoning_changes_the_action():
    one = policy()
    _, result = one.predict_action_batch(observation(), mode="eval")
    assert len(result["texts"]) == 3 and all(isinstance(text, str) for text in result["texts"])
    inputs = one.inputs(observation())
    with torch.no_grad():
        torch.nn.init.normal_(one.reasoning_film.scale_fc.weight)
        pooled = [
            one._pool(*one._hidden(inputs, one.prompt.answers([text] * 3))) for text in ("left", "right")
        ]
        assert not torch.allclose(one.condition(pooled[0]), one.condition(pooled[1]))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_other_families_act_and_learn(family):
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [0]}
    else:
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16, "patch_size": 14}
    text = {**TINY["vlm"]["text"], "head_dim": 16}
    one = policy(vlm={"family": family, "text": text, "vision": vision})
    actions, _ = one.predict_action_batch(observation(), mode="eval")
    assert actions.shape == (3, 3, 4)
    batch = {
        **observation(),
        "actions": torch.zeros(3, 3, 4),
        "action_is_pad": torch.zeros(3, 3, dtype=torch.bool),
        "reasonings": ["left", "", "right"],
    }
    one(forward_type="sft", batch=batch)["loss"].backward()
    assert one.vlm.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
