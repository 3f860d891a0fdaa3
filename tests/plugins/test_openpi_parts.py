"""rlinf-plugin-openpi beside the kit: checkpoint layouts, configuration, data configurations, caching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rlinf.config import ConfigError
from rlinf.models import get_model
from rlinf.plugins import get_host
from rlinf_openpi import checkpoint, flow
from rlinf_openpi.architecture import Architecture
from rlinf_openpi.data_config import load_data_config, shipped_names
from rlinf_openpi.data_layout import data_layout
from rlinf_openpi.network.gemma import GemmaBlock
from rlinf_openpi.network.pi0 import Observation, Pi0
from rlinf_openpi.network.sampling import sample_actions
from rlinf_openpi.network.siglip import SiglipBlock
from safetensors.torch import load_file, save_file
from test_openpi_kit import TINY, tiny


def build(config_name: str, **options: Any) -> Any:
    """A tiny policy with some noise on its weights."""
    model = tiny(config_name, **options)
    torch.manual_seed(0)
    policy = get_model(model).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return policy


def observation(batch: int = 3, wrist: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    obs: dict[str, Any] = {
        "main_images": rng.integers(0, 256, (batch, 24, 32, 3), dtype=np.uint8),
        "states": rng.normal(size=(batch, 6)).astype(np.float32),
        "task_descriptions": ["touch it", "push the red cube", "pick up the blue block and hold it"][:batch],
    }
    if wrist:
        obs["wrist_images"] = rng.integers(0, 256, (batch, 20, 20, 3), dtype=np.uint8)
    return obs


def network_inputs(policy: Any, batch: int = 2) -> tuple[Observation, torch.Tensor]:
    inputs = policy.processor.inputs(observation(batch), torch.device("cpu"))
    noise = torch.randn(batch, policy.horizon, policy.config.max_action_dim)
    return policy._observation(inputs), noise


# -- checkpoint layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", checkpoint.LAYOUTS)
def test_every_layout_comes_back(layout: str, tmp_path: Path) -> None:
    policy = build("pi0_libero")
    cfg = OmegaConf.create(tiny("pi0_libero", export_layout=layout))
    checkpoint.export(policy.state_dict(), cfg, tmp_path)
    (tmp_path / "norm_stats.json").write_text(json.dumps(statistics(6, 7)))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert checkpoint.DEAD.removeprefix("model.") in {name.removeprefix("model.") for name in names}
    model = tiny("pi0_libero", tokenizer_path=str(tokenizer_file(tmp_path)))
    again = get_model({**model, "model_path": str(tmp_path)})
    own, loaded = policy.state_dict(), again.state_dict()
    heads = [name for name in own if name.startswith("value_head.")]
    for name in own.keys() - ({} if layout == "openpi" else set(heads)):
        assert torch.equal(own[name], loaded[name]), name


def test_pi05_is_not_transformers() -> None:
    with pytest.raises(ValueError, match="transformers has pi0 only"):
        checkpoint.to_layout(build("pi05_tabletop").state_dict(), "transformers")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    policy = build("pi0_libero")
    state = {k: v.clone() for k, v in checkpoint.to_layout(policy.state_dict(), "openpi").items()}
    state["surplus.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "surplus.safetensors")
    with pytest.raises(ValueError, match=r"surplus.safetensors.* unknown surplus\.weight"):
        checkpoint.load_checkpoint(policy, str(tmp_path / "surplus.safetensors"))
    del state["surplus.weight"], state["state_proj.bias"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"lacks state_proj\.bias"):
        checkpoint.load_checkpoint(policy, str(tmp_path / "short.safetensors"))


def test_transformers_pi0_is_the_same_network(tmp_path: Path) -> None:
    """A second oracle: transformers reads what is exported in its layout, and computes the same."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    policy = build("pi0_libero", architecture={**TINY, "vlm": {"width": 32, "mlp_dim": 32}})
    sizes = policy.sizes
    gemma = {"num_hidden_layers": sizes.depth, "num_attention_heads": sizes.num_heads}
    gemma |= {"num_key_value_heads": sizes.num_kv_heads, "head_dim": sizes.head_dim}
    text = {"hidden_size": sizes.vlm.width, "intermediate_size": sizes.vlm.mlp_dim}
    expert = {"hidden_size": sizes.expert.width, "intermediate_size": sizes.expert.mlp_dim}
    vision = {"hidden_size": sizes.vision.width, "intermediate_size": sizes.vision.mlp_dim}
    vision |= {"num_hidden_layers": sizes.vision.depth, "num_attention_heads": sizes.vision.num_heads}
    vision |= {"patch_size": sizes.vision.patch_size, "image_size": sizes.vision.image_size}
    image_token = sizes.vocab_size - 1
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {"model_type": "gemma", "vocab_size": sizes.vocab_size, **text, **gemma},
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
            "projection_dim": sizes.vlm.width,
            "image_token_id": image_token,
        },
        dit_config={"model_type": "gemma", **expert, **gemma},
        chunk_size=policy.horizon,
        max_state_dim=policy.config.max_action_dim,
        max_action_dim=policy.config.max_action_dim,
    )
    cfg = OmegaConf.create(tiny("pi0_libero", export_layout="transformers"))
    checkpoint.export(policy.state_dict(), cfg, tmp_path)
    config.save_pretrained(tmp_path)
    theirs, info = PI0ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    obs, noise = network_inputs(policy)
    batch, cameras = obs.images.shape[:2]
    places = torch.full((batch, cameras * sizes.vision.tokens), image_token)
    ids = torch.cat([places, obs.tokens], dim=1)
    mask = torch.cat([torch.ones_like(places), obs.token_mask.long()], dim=1)
    pixels = obs.images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        expected = theirs.eval().sample_actions(
            state=obs.state,
            input_ids=ids,
            pixel_values=pixels,
            pixel_attention_mask=torch.ones(batch, cameras, dtype=torch.bool),
            attention_mask=mask,
            noise=noise,
            num_steps=4,
        )
        *_, ours = sample_actions(policy, policy.prefix(obs), obs.state, noise, 4)
    assert float((ours - expected).abs().max()) < 1e-4


@pytest.mark.parametrize(("pi05", "count"), [(False, 3_501_372_176), (True, 3_616_757_520)])
def test_the_published_sizes(pi05: bool, count: int) -> None:
    """Keys, shapes and a forward pass of the full network, on the meta device."""
    with torch.device("meta"):
        network = Pi0(Architecture(), action_dim=32, pi05=pi05)
    names = checkpoint.to_layout(network.state_dict(), "openpi")
    shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
    layer = "paligemma_with_expert.gemma_expert.model.layers.17"
    vlm = "paligemma_with_expert.paligemma.model"
    assert shapes["paligemma_with_expert.paligemma.lm_head.weight"] == (257152, 2048)
    assert shapes[f"{layer}.self_attn.q_proj.weight"] == (2048, 1024)
    assert shapes[f"{vlm}.language_model.layers.17.mlp.down_proj.weight"] == (2048, 16384)
    tower = f"{vlm}.vision_tower.vision_model"
    assert shapes[f"{tower}.encoder.layers.26.mlp.fc1.weight"] == (4304, 1152)
    assert shapes[f"{tower}.embeddings.position_embedding.weight"] == (256, 1152)
    if pi05:
        assert shapes[f"{layer}.input_layernorm.dense.weight"] == (3072, 1024)
    else:
        assert shapes["state_proj.weight"] == (1024, 32)
        assert len(shapes) == 777
    assert sum(tensor.numel() for tensor in names.values()) == count
    x = torch.empty(2, 50, 32, device="meta")
    hidden = meta_suffix(network, x)
    assert network.velocity(hidden).shape == x.shape


def meta_suffix(network: Pi0, x: torch.Tensor) -> torch.Tensor:
    """Prefix and suffix of two images and 48 prompt tokens; no value is looked at."""
    tokens = torch.empty(2, 48, dtype=torch.long, device="meta")
    images = torch.empty(2, 2, 224, 224, 3, dtype=torch.uint8, device="meta")
    obs = Observation(images, tokens, tokens.bool(), None if network.pi05 else x[:, 0])
    embedded, mask = network.embed_prefix(obs, compact=False)
    assert embedded.shape == (2, 2 * 256 + 48, 2048)
    prefix = network.prefix(obs, reference_padding=True)
    assert mask is not None and prefix.layers[17].k.shape == (2, 1, 560, 256)
    return network.suffix_hidden(x, x[:, 0, 0], obs.state, prefix)


# -- configuration -----------------------------------------------------------------------------------------


def statistics(state: int, actions: int) -> dict[str, Any]:
    def entry(size: int) -> dict[str, list[float]]:
        low, high = [-2.0] * size, [1.0] * size
        return {"mean": [0.5] * size, "std": [2.0] * size, "q01": low, "q99": high}

    return {"norm_stats": {"state": entry(state), "actions": entry(actions)}}


def tokenizer_file(folder: Path) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"<unk>": 3, "touch": 10, "it": 11, "push": 12}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_shipped_data_configurations() -> None:
    wanted = {"pi0_maniskill", "pi0_libero", "pi05_libero", "pi05_maniskill", "pi05_metaworld", "pi05_calvin"}
    assert wanted | {"pi0_custom"} <= set(shipped_names())
    for name in shipped_names():
        assert load_data_config(name).pi05 == name.startswith("pi05_")


def test_unknown_data_configurations_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pi05_calvin, .*'pi0_libreo'\. Did you mean pi0_libero\?"):
        get_model(tiny("pi0_libreo"))
    with pytest.raises(ValueError, match="no such file"):
        load_data_config(str(tmp_path / "mine.yaml"))
    path = tmp_path / "broken.yaml"
    path.write_text("pi05: false\naction_horizon: 0\ncamera: {}\n")
    with pytest.raises(ValueError, match=r"broken\.yaml: action_horizon: .*camera: Extra inputs"):
        load_data_config(str(path))


def test_a_data_configuration_of_ones_own(tmp_path: Path) -> None:
    """A file suffices: cameras, dimensions of the state, relative actions, one instruction, statistics."""
    (tmp_path / "norm_stats.json").write_text(json.dumps(statistics(3, 7)))
    path = tmp_path / "mine.yaml"
    path.write_text(
        "pi05: false\naction_horizon: 4\nmax_token_len: 8\nnormalization: zscore\n"
        "cameras: {base_0_rgb: extra_view_images.1}\nstate_indices: [5, 0, 2]\ndelta_mask: [2, -5]\n"
        "default_prompt: do it\n"
        "dataset: {cameras: {base_0_rgb: cam}, state: [pose, hand], actions: [act]}\n"
    )
    policy = build(str(path), norm_stats_path=str(tmp_path))
    obs = observation(2)
    obs["extra_view_images"] = np.stack([obs["wrist_images"], obs["main_images"][:, :20, :20]], axis=1)
    inputs = policy.processor.inputs(obs, torch.device("cpu"))
    state = torch.from_numpy(obs["states"][:, [5, 0, 2]])
    torch.testing.assert_close(inputs["state"][:, :3], (state - 0.5) / (2.0 + 1e-6))
    assert inputs["images"].shape == (2, 1, 28, 28, 3)
    assert torch.equal(inputs["tokenized_prompt"][0], inputs["tokenized_prompt"][1])
    actions = torch.rand(2, 4, 7)
    model = policy.processor.model_actions(actions, obs)
    assert model.shape == (2, 4, 8)
    torch.testing.assert_close(policy.processor.env_actions(model, obs), actions, atol=1e-5, rtol=0)
    relative = actions - torch.nn.functional.pad(state[:, :2], (0, 5))[:, None]
    torch.testing.assert_close(model[..., :7], (relative - 0.5) / (2.0 + 1e-6))


def test_data_layout(tmp_path: Path) -> None:
    layout = data_layout(OmegaConf.create(tiny("pi0_libero", action_horizon=None)))
    assert layout.action_horizon == 50
    assert layout.cameras == {"main_images": ("image",), "wrist_images": ("wrist_image",)}
    sample = {"states": np.arange(8.0), "actions": np.ones((50, 7))}
    assert layout.transform is not None
    prepared = layout.transform(dict(sample))
    np.testing.assert_allclose(prepared["actions"][0], [1, 0, -1, -2, -3, -4, 1])
    policy = build("pi0_libero")
    batch = {**observation(2), "prepared": torch.ones(2, dtype=torch.bool)}
    given = torch.rand(2, 4, 7)
    assert torch.equal(policy.processor.model_actions(given, batch)[..., :7], given)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"cache_prefix": True}, "set train_expert_only: true"),
        ({"noise_method": "flow_noise", "noise_anneal": True}, "noise_anneal cannot act"),
        ({"noise_logvar_range": [0.2, 0.1]}, "expected 0 < smallest < largest"),
        ({"noise_method": "flow_cps", "num_steps": 1}, "leave no step with noise"),
        ({"noise_levle": 0.3}, "noise_level"),
        ({"architecture": {"depht": 3}}, "depth"),
    ],
)
def test_what_cannot_act_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        get_model(tiny("pi0_libero", **options))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"num_action_chunks": 5}, "is more than the network's action_horizon 4"),
        ({"action_dim": 9}, "more than model.openpi.max_action_dim 8"),
        ({"model_path": "/nowhere"}, "brings no normalisation statistics"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        get_model({**tiny("pi0_libero"), **change})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_graphs_need_a_device() -> None:
    with pytest.raises(ValueError, match="cuda_graphs needs a CUDA device"):
        get_model(tiny("pi0_libero", compile="cuda_graphs"))


def test_flow_ode_cannot_explore() -> None:
    policy = build("pi0_libero", noise_method="flow_ode")
    policy.predict_action_batch(observation(), mode="eval")
    with pytest.raises(ValueError, match="flow_ode, which draws nothing"):
        policy.predict_action_batch(observation(), mode="train")


def test_long_prompts_are_refused_not_cut() -> None:
    policy = build("pi0_libero", max_token_len=5)
    with pytest.raises(ValueError, match="raise it"):
        policy.predict_action_batch(observation(), mode="eval")


# -- what is left out, cached or chosen ----------------------------------------------------------------------


def draws(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


@pytest.mark.parametrize("value_after_vlm", [False, True])
@pytest.mark.parametrize("config_name", ["pi0_libero", "pi05_tabletop"])
def test_a_cached_prefix_changes_nothing(config_name: str, value_after_vlm: bool) -> None:
    options = {"train_expert_only": True, "value_after_vlm": value_after_vlm}
    plain, cached = build(config_name, **options), build(config_name, **options, cache_prefix=True)
    calls: list[int] = []
    cached.vlm.vision_tower.vision_model.register_forward_hook(lambda *_: calls.append(1))
    results = [p.predict_action_batch(observation(), generators=draws(3))[1] for p in (plain, cached)]
    assert len(calls) == 1 and "images" not in results[1]["forward_inputs"]
    shapes = {name: x.shape for name, x in results[1]["forward_inputs"].items()}
    one = cached.predict_action_batch(observation(1), generators=draws(1))[1]["forward_inputs"]
    assert {name: (3, *x.shape[1:]) for name, x in one.items()} == shapes
    calls.clear()
    out = [p(forward_inputs=r["forward_inputs"]) for p, r in zip((plain, cached), results)]
    assert not calls, "training ran the frozen language model"
    for key in ("logprobs", "values", "entropy"):
        torch.testing.assert_close(out[0][key], out[1][key], atol=1e-5, rtol=0)
    out[1]["logprobs"].sum().backward()
    assert all(p.grad is None for p in cached.vlm.parameters())
    assert cached.expert.layers[0].mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("mode", ["mean_token", "first_token", "last_token"])
def test_values_on_the_language_model(mode: str) -> None:
    """Recomputed as recorded, and a matter of the sample alone, whatever prompts are beside it."""
    policy = build("pi05_tabletop", value_after_vlm=True, value_vlm_mode=mode)
    obs = observation(3)
    _, result = policy.predict_action_batch(obs, generators=draws(3))
    out = policy(forward_inputs=result["forward_inputs"])
    torch.testing.assert_close(out["values"], result["prev_values"], atol=1e-6, rtol=0)
    alone = {name: value[:1] for name, value in obs.items()}
    _, single = policy.predict_action_batch(alone, generators=draws(1))
    torch.testing.assert_close(single["prev_values"], result["prev_values"][:1], atol=1e-5, rtol=0)
    out["values"].sum().backward()
    assert policy.vlm.language_model.norm.weight.grad is not None


def test_random_steps_are_per_sample() -> None:
    policy = build("pi05_tabletop", num_steps=5, ignore_last=True)
    batch = 40
    obs = {name: [x[0]] * batch if isinstance(x, list) else np.repeat(x[:1], batch, 0)
           for name, x in observation(1).items()}  # fmt: skip
    _, result = policy.predict_action_batch(obs, generators=draws(batch))
    assert set(result["forward_inputs"]["denoise_inds"].tolist()) == {0, 1, 2, 3}
    assert result["forward_inputs"]["chains"].shape == (batch, 2, 4, 8)


def test_annealed_noise_travels_with_the_record() -> None:
    policy = build("pi0_libero", noise_anneal=True, noise_params=[0.8, 0.2, 10])
    policy.set_global_step(5)
    _, result = policy.predict_action_batch(observation(), generators=draws(3))
    torch.testing.assert_close(result["forward_inputs"]["noise_level"], torch.full((3,), 0.5))
    policy.set_global_step(100)
    out = policy(forward_inputs=result["forward_inputs"])
    torch.testing.assert_close(out["logprobs"], result["prev_logprobs"], atol=1e-5, rtol=0)
    assert flow.annealed((0.8, 0.2, 10), 100) == pytest.approx(0.2)


def test_joint_densities_add_up_or_average() -> None:
    kwargs = {"noise_method": "flow_sde", "joint_logprob": True, "num_steps": 3}
    mean, total = build("pi0_libero", **kwargs), build("pi0_libero", **kwargs, joint_reduction="sum")
    results = [p.predict_action_batch(observation(), generators=draws(3))[1] for p in (mean, total)]
    torch.testing.assert_close(
        results[0]["prev_logprobs"] * 4, results[1]["prev_logprobs"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("targets", "adapted"), [("expert", {"gemma_expert"}), ("vlm", {"paligemma"}),
                                                  ("all", {"gemma_expert", "paligemma"})])  # fmt: skip
def test_lora_targets(targets: str, adapted: set[str]) -> None:
    policy = get_model({**tiny("pi05_tabletop", lora_targets=targets), "is_lora": True})
    names = {n.split(".")[1] for n, p in policy.named_parameters() if p.requires_grad and ".lora_" in n}
    assert names == adapted
    assert all(p.requires_grad for p in policy.value_head.parameters())


def test_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """compile: default hands the denoising step and each block to torch.compile; keys and values are then
    concatenated."""
    handed: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: handed.append(kwargs) or function)
    plain, compiled = build("pi0_libero"), build("pi0_libero", compile="default")
    blocks = sum(isinstance(module, (GemmaBlock, SiglipBlock)) for module in plain.modules())
    assert handed == [{"mode": None}, *[{"recompile_limit": 64}] * blocks]
    actions = [p.predict_action_batch(observation(), mode="eval")[0] for p in (plain, compiled)]
    torch.testing.assert_close(actions[0], actions[1], atol=1e-5, rtol=0)


def test_robocasa_and_frankasim() -> None:
    from rlinf.envs.action_utils import prepare_actions

    get_host().model_spec("openpi")
    raw = np.linspace(-2, 2, 7, dtype=np.float32)[None, None]
    full = prepare_actions(raw, "robocasa", "openpi")
    np.testing.assert_allclose(full[0, 0], [*raw[0, 0], 0, 0, 0, 0, -1])
    np.testing.assert_allclose(prepare_actions(raw, "frankasim", "openpi")[0, 0], [*raw[0, 0, :3], 1.0])
    np.testing.assert_allclose(prepare_actions(raw, "polaris", "openpi")[0, 0, -1], 1.0)
    np.testing.assert_allclose(prepare_actions(raw, "robotwin", "openpi"), raw)
