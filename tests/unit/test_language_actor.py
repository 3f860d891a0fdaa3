"""Actors on transformers' own models with tiny random weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rlinf.models.language.actor import ActorAL, ActorLanguage, ActorVL
from rlinf.models.language.generation import GenerationConfig, generate, generate_batch
from rlinf.models.language.logits import output_logits
from rlinf.models.language.lora import in_tower
from rlinf.models.language.modality import ActorModality, get_supported_parameters, supports_parameter
from rlinf.models.language.packing import pack, reset_position_ids
from rlinf.models.language.vllm_engine import merged_weights
from rlinf.models.logprobs import entropy_from_logits, log_probs_from_logits
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

IMAGE, AUDIO = 90, 91


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Three sequences of 9, 5 and 7 tokens: padding on the left, the right and both sides."""
    ids = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[1, :0] = 0
    mask[2, :2] = 0
    return ids * mask, mask


def qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=92,
        vision_end_token_id=93, video_token_id=94,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config).eval()


def qwen2_audio() -> nn.Module:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    torch.manual_seed(0)
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
            "d_model": 16, "max_source_positions": 8,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
            "eos_token_id": 2,
        },
        audio_token_index=AUDIO,
    )  # fmt: skip
    return Qwen2AudioForConditionalGeneration(config).eval()


def plain_logprobs(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one unpadded row: log-probabilities of tokens 1.. and the entropies there."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return log_probs_from_logits(logits, ids[1:]), entropy_from_logits(logits)


# Flex attention compiles for every shape, which takes ten seconds: packed only.
@pytest.mark.parametrize(
    ("attention", "packing"),
    [("eager", False), ("eager", True), ("sdpa", False), ("sdpa", True), ("flex_attention", True)],
)
def test_padded_and_packed_rows_are_what_each_is_alone(attention: str, packing: bool) -> None:
    ids, mask = rows()
    actor = ActorLanguage(llama(), attn_implementation=attention, packing_samples=packing)
    with torch.no_grad():
        scores = actor(ids, 8, mask)
        for row in range(3):
            valid = mask[row].bool()
            logp, entropy = plain_logprobs(llama(), ids[row][valid])
            inside = valid[1:] & valid[:-1]
            assert_close(scores.logprobs[row][inside], logp, atol=2e-5, rtol=1e-4)
            assert_close(scores.entropy[row][inside], entropy, atol=2e-5, rtol=1e-4)
            assert (scores.logprobs[row][~inside] == 0).all()


def test_positions_count_from_zero_within_each_sequence() -> None:
    numbers = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [0, 4, 4, 4, 4, 5, 5, 5]])
    want = [[0, 1, 2, 0, 1, 0, 0, 0], [0, 0, 1, 2, 3, 0, 1, 2]]
    assert reset_position_ids(numbers).tolist() == want


def test_unpacking_restores_rows_and_padding() -> None:
    ids, mask = rows()
    packed = pack(ids, mask)
    assert packed.input_ids.shape == (1, int(mask.sum()))
    assert torch.equal(packed.unpack(packed.input_ids), ids)


def test_logit_changes_of_a_family_are_kept() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, logits_scaling=3.0,
        )
    ).eval()  # fmt: skip
    ids = torch.arange(3, 9)
    with torch.no_grad():
        scores = ActorLanguage(model)(ids[None], 5, torch.ones(1, 6, dtype=torch.long))
        assert_close(scores.logprobs[0], plain_logprobs(model, ids)[0], atol=1e-5, rtol=1e-5)


def test_sampled_tokens_have_the_log_probabilities_that_forward_recomputes() -> None:
    actor = ActorLanguage(llama())
    prompt = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = (prompt > 0).long()

    def sample(order: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generators = [torch.Generator().manual_seed(40 + i) for i in order]
        config = GenerationConfig(max_new_tokens=6)
        return actor.generate(prompt[order], mask[order], generators=generators, config=config)

    sequences, full, actions = sample([0, 1])
    swapped, _, _ = sample([1, 0])
    assert torch.equal(sequences, swapped[[1, 0]])
    assert sequences.shape == full.shape and actions.shape[1] == sequences.shape[1] - 4
    assert torch.equal(full[:, 4:].bool(), actions)
    with torch.no_grad():
        scores = actor(sequences, actions.shape[1], full)
    assert ((scores.logprobs < 0) == actions).all()


def test_greedy_generation_is_that_of_transformers_and_stops_at_the_end_token() -> None:
    model = llama()
    prompt = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = (prompt > 0).long()
    theirs = model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=5, do_sample=False)
    ours, _, actions = ActorLanguage(model).generate(prompt, mask, config=GenerationConfig(max_new_tokens=5))
    assert torch.equal(ours, theirs) and actions.all()
    end = int(ours[0, 5])
    config = GenerationConfig(max_new_tokens=5, eos_token_ids=(end,), pad_token_id=99)
    short, full, actions = ActorLanguage(model).generate(prompt[:1], mask[:1], config=config)
    kept = int(actions.sum())
    assert short[0, 3 + kept] == end and int(full.sum()) == 2 + kept


def prompts_of_all_lengths() -> tuple[torch.Tensor, torch.Tensor]:
    """16 prompts of 1 to 8 tokens, padded left; four are the same."""
    length = torch.tensor([8, 3, 3, 3, 3, 1, 5, 7, 2, 8, 6, 4, 1, 2, 7, 5])
    ids = torch.randint(10, 90, (16, 8), generator=torch.Generator().manual_seed(3))
    ids[1:5] = ids[1]
    mask = (torch.arange(8) >= 8 - length[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("max_num_seqs", [None, 1, 5])
def test_rows_that_come_and_go_get_what_whole_batches_get(attention: str, max_num_seqs: int | None) -> None:
    """Answers of 1 to 12 tokens, sampled and greedy; a row's slot goes to the next prompt."""
    model = llama()
    actor = ActorLanguage(model, attn_implementation=attention)
    ids, mask = prompts_of_all_lengths()
    config = GenerationConfig(
        max_new_tokens=12, temperature=0.8, eos_token_ids=tuple(range(12)), max_num_seqs=max_num_seqs
    )
    for sampled in (True, False):
        both = []
        for generate_all in (generate, generate_batch):
            generators = [torch.Generator().manual_seed(i) for i in range(16)] if sampled else None
            both.append(generate_all(model, ids, mask, generators, config, {}))
        for ours, theirs in zip(both[0][:3], both[1][:3], strict=True):
            assert torch.equal(ours, theirs)
        sequences, full, actions, _ = both[0]
        lengths = actions.sum(1)
        assert lengths.min() < 3 and lengths.max() == 12
        # Positions and masks of the slots are those of training.
        with torch.no_grad():
            hidden = actor.hidden_states(sequences, full)
        greedy = output_logits(model, hidden[:, 7:-1]).argmax(-1)
        assert sampled or torch.equal(greedy[actions], sequences[:, 8:][actions])


def test_a_step_computes_rows_under_way_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than the slots, all of them while prompts wait, and a group's prompt once."""
    actor = ActorLanguage(llama())
    ids, mask = prompts_of_all_lengths()
    sizes: list[tuple[int, int]] = []
    backbone = actor.model.model
    whole = backbone.forward

    def counted(**inputs: torch.Tensor) -> object:
        sizes.append(tuple(inputs["input_ids"].shape))
        return whole(**inputs)

    monkeypatch.setattr(backbone, "forward", counted)
    generators = [torch.Generator().manual_seed(i) for i in range(16)]
    config = GenerationConfig(max_new_tokens=12, eos_token_ids=tuple(range(12)), max_num_seqs=5)
    _, _, actions = actor.generate(ids, mask, generators=generators, config=config)
    assert sizes[0] == (2, 8), "five prompts, of which four are the same"
    steps = [rows for rows, width in sizes if width == 1]
    assert max(steps) == 5 and steps[-1] < 5
    # A prompt gives the first token, a step one more to each row: nothing is computed for rows that ended.
    prefilled = 16 - 3
    assert sum(rows for rows, _ in sizes) == prefilled + int(actions.sum()) - 16


def test_answers_go_on_with_weights_that_come_between_two_tokens() -> None:
    """Each token, and its log-probability, is what the weights of its moment give after all before it."""
    actor, later = ActorLanguage(llama()), llama()
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    models, moments = [llama(), later], iter([False, False, True])

    def refresh() -> bool:
        if not next(moments, False):
            return False
        actor.model.load_state_dict(later.state_dict())
        return True

    ids, mask = prompts_of_all_lengths()
    config = GenerationConfig(max_new_tokens=7, eos_token_ids=(), max_num_seqs=5, temperature=0.7)
    sequences, _, _, logprobs = actor.sample(ids, mask, config=config, refresh=refresh)
    assert logprobs is not None
    answers = sequences[:, ids.shape[1] :]
    changes = 0
    for row, (prompt, valid, answer) in enumerate(zip(ids, mask.bool(), answers, strict=True)):
        whole = torch.cat([prompt[valid], answer])
        with torch.no_grad():
            logits = torch.stack([model(whole[None]).logits[0, -8:-1] for model in models]) / 0.7
        # The first five were under way when the weights came, with three tokens each.
        old = torch.arange(7) < (3 if row < 5 else 0)
        expected = logits[0].where(old[:, None], logits[1])
        assert torch.equal(answer, expected.argmax(-1))
        assert_close(logprobs[row], log_probs_from_logits(expected, answer))
        changes += not torch.equal(logits[0].argmax(-1), answer)
    assert changes
    assert actor.sample(ids, mask, config=config, refresh=refresh).logprobs is None
    with pytest.raises(ValueError, match=r"rollout\.interruptible: its answers come whole"):
        ActorVL(qwen2_vl()).check_refresh()


def test_layers_with_a_window_take_whole_batches() -> None:
    from rlinf.models.language.continuous import fits
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    window = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4))
    assert not fits(window) and not fits(qwen2_vl()) and not fits(qwen2_audio()) and fits(llama())
    prompt = torch.tensor([[3, 4, 5, 6, 7, 8]])
    ours, _, _ = ActorLanguage(window).generate(
        prompt, torch.ones_like(prompt), config=GenerationConfig(max_new_tokens=5)
    )
    theirs = window.generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    assert torch.equal(ours, theirs)


def vision_batch() -> dict[str, torch.Tensor]:
    """An image of 4 x 4 patches (4 tokens) in the prompt of the first row and of the second, padded left."""
    image = [92, *[IMAGE] * 4, 93]
    ids = torch.tensor([[*image, 5, 6, 7, 8], [0, 0, *image, 9, 11]])
    return {
        "sequences": ids,
        "attention_mask": (ids > 0).long(),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(32, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(2)),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    }


def test_vision_rows_are_what_each_is_alone_and_look_at_the_image() -> None:
    actor, batch = ActorVL(qwen2_vl()), vision_batch()
    with torch.no_grad():
        both = actor(num_actions=2, **batch).logprobs
        alone = {
            key: value[1:, 2:]
            for key, value in batch.items()
            if key not in ("pixel_values", "image_grid_thw")
        }
        alone |= {"pixel_values": batch["pixel_values"][16:], "image_grid_thw": batch["image_grid_thw"][1:]}
        assert_close(actor(num_actions=2, **alone).logprobs, both[1:], atol=1e-5, rtol=1e-4)
        batch["pixel_values"] = batch["pixel_values"].flip(0)
        assert (actor(num_actions=2, **batch).logprobs - both).abs().max() > 1e-4


def test_vision_generation_recomputes() -> None:
    actor, batch = ActorVL(qwen2_vl()), vision_batch()
    ids = batch.pop("sequences")
    mask = batch.pop("attention_mask")
    types = batch.pop("mm_token_type_ids")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    config = GenerationConfig(max_new_tokens=3, eos_token_ids=(), pad_token_id=0)
    sequences, full, actions = actor.generate(
        ids, mask, generators=generators, config=config, mm_token_type_ids=types, **batch
    )
    grown = torch.cat([types, torch.zeros(2, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        theirs = actor.model(
            input_ids=sequences, attention_mask=full, mm_token_type_ids=grown, **batch
        ).logits[:, -4:-1]
        ours = actor(sequences, 3, full, mm_token_type_ids=grown, **batch).logprobs
    assert actions.all()
    assert_close(ours, log_probs_from_logits(theirs, sequences[:, -3:]), atol=1e-5, rtol=1e-4)


def test_audio_rows_listen() -> None:
    actor = ActorAL(qwen2_audio())
    ids = torch.tensor([[AUDIO, AUDIO, AUDIO, AUDIO, 5, 6, 7]])
    sound = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    inputs = {"input_features": sound, "feature_attention_mask": torch.ones(1, 16, dtype=torch.long)}
    mask = torch.ones_like(ids)
    with torch.no_grad():
        first = actor(ids, 2, mask, **inputs).logprobs
        second = actor(ids, 2, mask, **{**inputs, "input_features": sound.flip(2)}).logprobs
    assert (first - second).abs().max() > 1e-5


def test_lora_stays_out_of_frozen_towers() -> None:
    adapted = [n for n, p in ActorVL(qwen2_vl(), lora_rank=2).named_parameters() if p.requires_grad]
    assert adapted and not any(in_tower(name) for name in adapted)
    both = ActorVL(qwen2_vl(), lora_rank=2, freeze_vision_tower=False)
    assert any(in_tower(name) for name, p in both.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"model\.visual\..* is in a frozen tower"):
        ActorVL(qwen2_vl(), lora_rank=2, target_modules=[r".*\.(qkv|q_proj)"])


def test_merged_weights_are_what_the_adapters_compute() -> None:
    actor = ActorLanguage(llama(), lora_rank=2)
    with torch.no_grad():
        for parameter in actor.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    plain, (ids, _) = llama(), rows()
    plain.load_state_dict(dict(merged_weights(actor.model)))
    assert_close(plain(ids).logits, actor.model(ids).logits)


def test_modalities_name_their_inputs() -> None:
    actor = ActorVL(qwen2_vl())
    assert supports_parameter(actor, "pixel_values") and not supports_parameter(actor, "input_features")
    assert get_supported_parameters(ActorLanguage(llama())) == frozenset()
    assert ActorModality("omni") is ActorModality.OMNI
    with pytest.raises(TypeError, match="ActorLanguage takes no pixel_values"):
        ActorLanguage(llama())(*rows()[:1], 2, rows()[1], pixel_values=torch.zeros(1))
    with pytest.raises(TypeError, match="declares neither"):
        get_supported_parameters(object())


def test_a_folder_and_a_model_give_the_same_actor(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    ids, mask = rows()
    for options in ({}, {"bf16": True}, {"packing_samples": True}):
        with torch.no_grad():
            a = ActorLanguage(tmp_path, **options).eval()(ids, 4, mask)
            b = ActorLanguage(llama(), **options)(ids, 4, mask)
        assert_close(a.logprobs, b.logprobs)


def test_checkpointing_changes_memory_not_gradients() -> None:
    ids, mask = rows()

    def gradient(checkpointing: bool) -> torch.Tensor:
        actor = ActorLanguage(llama()).train()
        if checkpointing:
            actor.gradient_checkpointing_enable()
        actor(ids, 4, mask).logprobs.sum().backward()
        return actor.model.model.layers[0].mlp.up_proj.weight.grad

    assert_close(gradient(True), gradient(False))


def test_a_base_in_four_bits_trains_its_adapters_alone(tmp_path: Path) -> None:
    llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    actor = ActorLanguage(tmp_path, lora_rank=4, load_in_4bit=True)
    plain = ActorLanguage(tmp_path, lora_rank=4)
    weight = actor.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert weight.dtype == torch.uint8 and weight.numel() == 64 * 128 // 2
    ids, mask = rows()
    logprobs = [each(ids, 4, mask).logprobs for each in (actor, plain)]
    assert not torch.equal(*logprobs)
    assert_close(*logprobs, atol=0.1, rtol=0)
    logprobs[0].sum().backward()
    trained = {name for name, x in actor.named_parameters() if x.grad is not None}
    assert trained and all(".lora_" in name for name in trained)
    assert actor.generate(ids, mask, config=GenerationConfig(max_new_tokens=3))[0].shape == (3, 12)


def test_options_that_cannot_act_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TypeError, match="'lora_rnk'; did you mean 'lora_rank'"):
        ActorLanguage(llama(), lora_rnk=2)
    with pytest.raises(ValueError, match="packing_samples: images and audio belong to rows"):
        ActorVL(qwen2_vl(), packing_samples=True)
    with pytest.raises(ValueError, match=r"no config\.json"):
        ActorLanguage(tmp_path)
    with pytest.raises(ValueError, match="give lora_rank"):
        ActorLanguage(llama(), load_in_4bit=True)
    with pytest.raises(ValueError, match="load_in_4bit and vllm exclude each other"):
        ActorLanguage(tmp_path, load_in_4bit=True, lora_rank=2, vllm={})
    with pytest.raises(ValueError, match="vllm answers for models that read only"):
        ActorVL(qwen2_vl(), vllm={})
    model = llama()
    model.save_pretrained(tmp_path)
    with monkeypatch.context() as absent:
        absent.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"rlinf-core\[quantized\]"):
            ActorLanguage(tmp_path, load_in_4bit=True, lora_rank=2)
        with pytest.raises(ImportError, match=r"rlinf-core\[vllm\]"):
            ActorLanguage(model, vllm={}).start_engine()
    ActorLanguage(llama(), use_flash_attention_2=True)
    assert "SDPA is used instead" in caplog.text


def test_the_documented_names_import_late() -> None:
    code = (
        "import sys, rlinf.models as m\n"
        "assert 'torch' not in sys.modules\n"
        "from rlinf.models import ActorModality, ActorLanguage, ActorVL, ActorAL, apply_lora_configuration\n"
        "from rlinf.models import log_probs_from_logits, reset_position_ids\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
