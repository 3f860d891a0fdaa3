"""Language models as policies and as reward models: tiny ones, as the shipped configurations build them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rlinf.algorithms import highest
from rlinf.config import Config, ConfigError, load_config
from rlinf.data.errors import DatasetError
from rlinf.data.text import TextDataset, TextSamples, read_rows
from rlinf.models import get_model
from rlinf.models.language.policy import LanguagePolicy
from rlinf.models.language.text import END, MEDIA_START, PIECE, pad_left
from rlinf.models.reward.judge import GenerativeRewardPolicy
from rlinf.models.reward.policy import ScalarRewardPolicy
from rlinf.testing.tokenizer import byte_tokenizer
from torch.testing import assert_close

PROMPTS = ["12+34=", "9+1=", "00+07="]
VISION = [
    "model.model_type=vision_language",
    "~model.causal_lm",
    "model.vision_language={characters: '0123456789+=', max_prompt_length: 16}",
    "model.vision_language.config={model_type: qwen2_vl}",
    "model.vision_language.config.text_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2}",
    "model.vision_language.config.text_config.rope_parameters={rope_type: default, mrope_section: [1, 1, 2], "
    "rope_theta: 10000.0}",
    "model.vision_language.config.vision_config={depth: 1, embed_dim: 16, num_heads: 2, hidden_size: 32, "
    "mlp_ratio: 2, patch_size: 4, spatial_merge_size: 2, temporal_patch_size: 2}",
]

PALIGEMMA = [
    "model.model_type=vision_language",
    "~model.causal_lm",
    'model.vision_language={characters: "0123456789+=\\n", max_prompt_length: 16}',
    "model.vision_language.config={model_type: paligemma}",
    "model.vision_language.config.text_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8}",
    "model.vision_language.config.vision_config={hidden_size: 16, intermediate_size: 24, image_size: 16, "
    "num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8}",
]
AUDIO = [
    "model.model_type=audio_language",
    "~model.causal_lm",
    "model.audio_language={characters: '0123456789+=', max_prompt_length: 40}",
    "model.audio_language.config={model_type: qwen2_audio}",
    "model.audio_language.config.text_config={model_type: qwen2, hidden_size: 32, intermediate_size: 48, "
    "num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2}",
    "model.audio_language.config.audio_config={num_mel_bins: 8, encoder_layers: 1, d_model: 16, "
    "encoder_attention_heads: 2, encoder_ffn_dim: 16, max_source_positions: 50}",
]
MEDIA = {"text": [], "vision": VISION, "paligemma": PALIGEMMA, "audio": AUDIO}


def retyped(overrides: list[str], model_type: str) -> list[str]:
    """The same small network as another model type, in the configuration of reward models."""
    old = overrides[0].rpartition("=")[2]
    return [
        "~model.scalar_reward" if text == "~model.causal_lm" else text.replace(old, model_type)
        for text in overrides
    ]


def policy(*overrides: str) -> LanguagePolicy:
    torch.manual_seed(0)
    model = get_model(load_config("language_grpo", overrides).model)
    assert isinstance(model, LanguagePolicy)
    return model.eval()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def media(kind: str) -> dict[str, np.ndarray]:
    """Pictures, or sounds of 0.4 to 0.8 s, for `PROMPTS`."""
    rng = np.random.default_rng(0)
    if kind in ("vision", "paligemma"):
        return {"main_images": rng.integers(0, 255, (3, 16, 16, 3), np.uint8)}
    if kind == "audio":
        sounds = rng.normal(size=(3, 12_800)).astype(np.float32)
        for row, length in enumerate((12_800, 6_400, 9_777)):
            sounds[row, length:] = np.nan
        return {"audios": sounds}
    return {}


def observation(kind: str) -> dict[str, object]:
    return {"task_descriptions": PROMPTS, **media(kind)}


@pytest.mark.parametrize("kind", MEDIA)
@torch.no_grad()
def test_training_recomputes_what_a_rollout_recorded(kind: str) -> None:
    model = policy(*MEDIA[kind], "model.add_value_head=true", "algorithm.adv_type=gae",
                   "algorithm.loss_type=actor_critic")  # fmt: skip
    actions, result = model.predict_action_batch(observation(kind), generators=generators(0, 1, 2))
    again = model.default_forward(result["forward_inputs"])
    assert_close(again["logprobs"], result["prev_logprobs"], atol=1e-5, rtol=0)
    assert_close(again["values"], result["prev_values"], atol=1e-5, rtol=0)
    one = {name: x[2:] for name, x in result["forward_inputs"].items()}
    alone = model.default_forward(one)
    assert_close(alone["logprobs"], result["prev_logprobs"][2:], atol=1e-5, rtol=1e-4)
    ended = actions[..., 0] < 0
    assert (result["prev_logprobs"][..., 0][ended] == 0).all()
    assert (result["prev_logprobs"][..., 0][~ended] < 0).all()
    assert (result["prev_values"][ended] == 0).all()


@torch.no_grad()
def test_an_answer_depends_on_its_prompt_and_its_generator_alone() -> None:
    model = policy()
    together, _ = model.predict_action_batch({"task_descriptions": PROMPTS}, generators=generators(0, 1, 2))
    alone, _ = model.predict_action_batch({"task_descriptions": PROMPTS[1:2]}, generators=generators(1))
    assert torch.equal(together[1:2], alone)
    first, _ = model.predict_action_batch({"task_descriptions": PROMPTS}, mode="eval")
    assert torch.equal(first, model.predict_action_batch({"task_descriptions": PROMPTS}, mode="eval")[0])


@torch.no_grad()
def test_a_hidden_prompt_is_the_beginning_of_a_text() -> None:
    """An evaluation of texts that hides the prompts: what the model says without any."""
    model = policy()
    assert model.processor.prompts([""]) == ([[END]], {})
    hidden = {"task_descriptions": ["", ""]}
    actions, _ = model.predict_action_batch(hidden, mode="eval")
    assert torch.equal(actions[0], actions[1])
    mixed = {"task_descriptions": ["", PROMPTS[0]]}
    together, result = model.predict_action_batch(mixed, generators=generators(0, 1))
    assert_close(model.default_forward(result["forward_inputs"])["logprobs"], result["prev_logprobs"])
    alone, _ = model.predict_action_batch({"task_descriptions": [""]}, generators=generators(0))
    assert torch.equal(alone, together[:1])
    # A picture that stays is a prompt.
    seeing = policy(*VISION)
    (row,), _ = seeing.processor.prompts([""], {"main_images": media("vision")["main_images"][:1]})
    assert END not in row and len(row) == 6


@pytest.mark.parametrize(("kind", "name"), [("vision", "pixel_values"), ("audio", "input_features")])
@torch.no_grad()
def test_a_policy_sees_its_picture_and_hears_its_sound(kind: str, name: str) -> None:
    model = policy(*MEDIA[kind])
    _, result = model.predict_action_batch(observation(kind), generators=generators(0, 1, 2))
    changed = {**result["forward_inputs"], name: -result["forward_inputs"][name]}
    difference = model.default_forward(changed)["logprobs"] - result["prev_logprobs"]
    assert difference.abs().amax(dim=(1, 2)).min() > 1e-6
    with pytest.raises(ValueError, match=f"which a {kind}_language model does not take"):
        model.processor.check("1+1=", [(16, 16) if kind == "audio" else (9_777,)])
    other = "audio" if kind == "vision" else "vision"
    with pytest.raises(ValueError, match=f"which a {kind}_language model does not take"):
        model.predict_action_batch(observation(other))


@torch.no_grad()
def test_a_sound_is_what_it_is_alone() -> None:
    """Its neighbours, and how long they are, change nothing."""
    model = policy(*AUDIO)
    together, _ = model.predict_action_batch(observation("audio"), generators=generators(0, 1, 2))
    alone = {"task_descriptions": PROMPTS[1:2], "audios": media("audio")["audios"][1:2, :6_400]}
    assert torch.equal(model.predict_action_batch(alone, generators=generators(1))[0], together[1:2])
    assert model.processor.media is not None
    assert [model.processor.media.pieces((n,)) for n in (12_800, 6_400, 9_777)] == [20, 10, 15]
    for samples, message in ((16_001, "longer than the model hears, 1 s"), (400, "too short")):
        with pytest.raises(ValueError, match=message):
            model.processor.check("1+1=", [(samples,)])


def varied(*rows: list[np.ndarray]) -> np.ndarray:
    """`main_images` of prompts with pictures of different sizes and numbers."""
    found = np.empty(len(rows), object)
    for place, row in enumerate(rows):
        found[place] = row
    return found


@torch.no_grad()
def test_pictures_of_different_sizes_and_numbers_are_what_they_are_alone() -> None:
    model = policy(*VISION, "model.vision_language.max_prompt_length=24")
    rng = np.random.default_rng(0)
    small, wide, high = (rng.integers(0, 255, (*size, 3), np.uint8) for size in ((16, 16), (8, 32), (24, 16)))
    pictures = varied([small], [wide, high], [small, small, wide])
    texts = {"task_descriptions": PROMPTS}
    prompts, _ = model.processor.prompts(PROMPTS, {"main_images": pictures})
    # Start, a piece per 8 x 8 pixels, end; then the text.
    assert [len(row) for row in prompts] == [6 + 6, 6 + 8 + 4, 6 + 6 + 6 + 6]
    model.processor.check(PROMPTS[1], [(8, 32), (24, 16)])
    with pytest.raises(ValueError, match="max_prompt_length is 24"):
        model.processor.check(PROMPTS[1], [(8, 32)] * 2 + [(24, 16), (16, 16)])
    actions, result = model.predict_action_batch(
        {**texts, "main_images": pictures}, generators=generators(0, 1, 2)
    )
    inputs = result["forward_inputs"]
    again = model.default_forward(inputs)["logprobs"]
    assert_close(again, result["prev_logprobs"], atol=1e-5, rtol=0)
    for i in range(3):
        obs = {"task_descriptions": PROMPTS[i : i + 1], "main_images": pictures[i : i + 1]}
        alone, own = model.predict_action_batch(obs, generators=generators(i))
        assert torch.equal(alone, actions[i : i + 1])
        # Rows of different batches can be joined.
        assert own["forward_inputs"]["pixel_values"].shape[1:] == inputs["pixel_values"].shape[1:]
        one = {name: x[i : i + 1] for name, x in inputs.items()}
        assert_close(model.default_forward(one)["logprobs"], again[i : i + 1], atol=1e-5, rtol=0)
    # Pictures of one size are the same, whatever the form.
    plain = model.predict_action_batch({**texts, "main_images": np.stack([small] * 3)}, "eval")[0]
    assert torch.equal(
        plain, model.predict_action_batch({**texts, "main_images": varied(*[[small]] * 3)}, "eval")[0]
    )
    # The second of a prompt's pictures counts.
    _, other = model.processor.prompts(
        PROMPTS, {"main_images": varied([small], [wide, 255 - high], [small, small, wide])}
    )
    changed = model.default_forward({**inputs, **other})["logprobs"]
    assert (changed - again)[1].abs().max() > 1e-6
    assert_close(changed[::2], again[::2])


@torch.no_grad()
def test_paligemma_reads_its_prompt_both_ways_and_its_answer_one_way() -> None:
    model = policy(*PALIGEMMA)
    assert sum("GemmaDecoderLayer" in name for name in model._no_split_modules) == 1
    prompts, seen = model.processor.prompts(PROMPTS, media("paligemma"))
    newline = model.processor.tokenizer.encode("\n")
    text = model.processor.tokenizer.encode(PROMPTS[0])
    assert prompts[0] == [PIECE] * 4 + [MEDIA_START, *text, *newline]
    ids, mask = pad_left(prompts, max(map(len, prompts)), 0)
    answer = torch.tensor([[7, 8, 9]] * 3)
    whole, ones = torch.cat([ids, answer], 1), torch.cat([mask, torch.ones_like(answer)], 1)
    count = answer.shape[1]
    hidden = model.actor.hidden_states(whole, ones, **model.processor.flat(whole, seen, count))
    other = whole.clone()
    other[:, -1] = 10
    later = model.actor.hidden_states(other, ones, **model.processor.flat(other, seen, count))
    assert_close(later[:, :-1], hidden[:, :-1])
    other = whole.clone()
    other[:, -count - 2] = 10  # the prompt's last character but the line's end
    changed = model.actor.hidden_states(other, ones, **model.processor.flat(other, seen, count))
    assert (changed - hidden)[:, ids.shape[1] - 8].abs().max() > 1e-6
    for obs in ({}, {"main_images": varied(*[[np.zeros((16, 16, 3), np.uint8)] * 2] * 3)}):
        with pytest.raises(ValueError, match="pictures; the model takes exactly one"):
            model.processor.prompts(PROMPTS, obs)
    # Of any size: it is scaled.
    model.predict_action_batch(
        {"task_descriptions": [PROMPTS[0]], "main_images": np.zeros((1, 40, 9, 3), np.uint8)}
    )


def test_sft_loss_leaves_out_rows_that_do_not_count() -> None:
    model = policy()
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "10+10=", "answer": "02"}]
    both = model.sft_forward({"rows": rows, "action_is_pad": torch.tensor([[False], [True]])})
    alone = model.sft_forward({"rows": rows[:1], "action_is_pad": torch.tensor([[False]])})
    assert_close(both["loss"], alone["loss"])
    with pytest.raises(ValueError, match="'x' in '1x=' is not in the alphabet"):
        model.sft_forward(
            {"rows": [{"prompt": "1x=", "answer": "2"}], "action_is_pad": torch.tensor([[False]])}
        )


@torch.no_grad()
def test_a_reward_model_scores_the_answer_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    model = get_model(load_config("arithmetic_reward").model).eval()
    assert isinstance(model, ScalarRewardPolicy)
    scores = model.score(["1+1=", "10+10="], ["2", "02"])
    assert_close(model.score(["1+1="], ["2"]), scores[:1], atol=1e-5, rtol=1e-4)
    assert (model.score(["1+1="], ["3"]) - scores[0]).abs() > 1e-4
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    pad = torch.tensor([[False], [True]])
    out = model.sft_forward({"rows": [row, {**row, "chosen": "3", "rejected": "2"}], "action_is_pad": pad})
    gap = model.score(["1+1="], ["2"]) - model.score(["1+1="], ["3"])
    assert_close(out["loss"], -torch.nn.functional.logsigmoid(gap).squeeze())
    assert out["accuracy"] == float(gap > 0)
    obs = {"task_descriptions": ["1+1="], "first": np.array(["2"]), "second": np.array(["3"])}
    assert_close(model.predict_action_batch(obs, mode="eval")[0].view(-1), gap)


TEMPLATE = """
{%- for m in messages %}<|user|>
{%- if m.content is string %}{{ m.content }}
{%- else %}{% for part in m.content %}
{%- if part.type == 'image' %}<|start|><|piece|><|end|>
{%- elif part.type == 'audio' %}<|audio_bos|><|piece|><|audio_eos|>
{%- else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.mark.parametrize("kind", ["vision", "audio"])
@torch.no_grad()
def test_a_folder_brings_its_tokenizer_and_its_template(kind: str, tmp_path: Path) -> None:
    """The picture or sound goes to where the chat template has its place."""
    small = policy(*MEDIA[kind])
    marks = [
        "<|start|>",
        "<|piece|>",
        "<|end|>",
        "<|audio_bos|>",
        "<|audio_eos|>",
        "<|user|>",
        "<|assistant|>",
    ]
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = TEMPLATE
    ids = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks)))
    network, config = small.actor.model, small.actor.model.config
    network.resize_token_embeddings(len(tokenizer))
    if kind == "vision":
        config.image_token_id, config.video_token_id = ids["<|piece|>"], ids["<|user|>"]
        config.vision_start_token_id, config.vision_end_token_id = ids["<|start|>"], ids["<|end|>"]
    else:
        config.audio_token_index = ids["<|piece|>"]
    for part in (network, tokenizer, small.processor.media.processor):  # type: ignore[union-attr]
        part.save_pretrained(tmp_path)
    own = f"model.{kind}_language={{chat_template: true, max_prompt_length: 60}}"
    model = policy(MEDIA[kind][0], "~model.causal_lm", own, f"model.model_path={tmp_path}")
    prompts, _ = model.processor.prompts(["ab"], {key: values[:1] for key, values in media(kind).items()})
    start, end = ("<|start|>", "<|end|>") if kind == "vision" else ("<|audio_bos|>", "<|audio_eos|>")
    pieces = [ids["<|piece|>"]] * (4 if kind == "vision" else 20)
    text = tokenizer.encode("ab", add_special_tokens=False)
    assert prompts == [[ids["<|user|>"], ids[start], *pieces, ids[end], *text, ids["<|assistant|>"]]]
    assert model.processor.prompts(["ab"])[0] == [[ids["<|user|>"], *text, ids["<|assistant|>"]]]
    _, result = model.predict_action_batch(observation(kind), generators=generators(0, 1, 2))
    again = model.default_forward(result["forward_inputs"])["logprobs"]
    assert_close(again, result["prev_logprobs"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 places for pictures or a sound, and 1 of them"):
        model.processor.prompts(["<|piece|>"], {key: values[:1] for key, values in media(kind).items()})


@pytest.mark.parametrize(
    ("kind", "model_type"), [("vision", "scalar_reward_vl"), ("audio", "scalar_reward_al")]
)
def test_a_reward_model_of_pictures_or_sounds_learns_from_pairs(kind: str, model_type: str) -> None:
    torch.manual_seed(0)
    model = get_model(load_config("arithmetic_reward", retyped(MEDIA[kind], model_type)).model)
    assert isinstance(model, ScalarRewardPolicy)
    rows = [{"prompt": prompt, "chosen": "2", "rejected": "3"} for prompt in PROMPTS]
    # The last row does not count: its picture or sound must not either.
    batch = {"rows": rows, "action_is_pad": torch.tensor([[False], [False], [True]]), **media(kind)}
    before = model.sft_forward(batch)["loss"]
    two = {**media(kind), "rows": rows[:2], "action_is_pad": torch.zeros(2, 1, dtype=torch.bool)}
    two |= {key: values[:2] for key, values in media(kind).items()}
    assert_close(model.sft_forward(two)["loss"], before)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        model.sft_forward(batch)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = model.sft_forward(batch)
        assert after["loss"] < 0.5 * before and after["accuracy"] == 1
        scores = model.score(PROMPTS, ["2", "2", "2"], media(kind))
        flipped = {key: values[::-1].copy() for key, values in media(kind).items()}
        assert (model.score(PROMPTS, ["2", "2", "2"], flipped) - scores)[[0, 2]].abs().min() > 1e-5
        obs = {**observation(kind), "first": np.array(["2"] * 3), "second": np.array(["3"] * 3)}
        assert (model.predict_action_batch(obs, mode="eval")[0] > 0).all()


def test_a_judge_learns_to_write_scores() -> None:
    overrides = [
        *(text.replace("vision_language", "generative_reward_vl") for text in VISION),
        "model.generative_reward_vl.characters='0123456789+= :Score{}pmt'",
        "model.generative_reward_vl.max_prompt_length=40",
        "model.generative_reward_vl.template='{prompt}{answer} '",
        "model.generative_reward_vl.unparsed=0.25",
        "model.num_action_chunks=10",
        "env.steps_per_rollout=10",
    ]
    torch.manual_seed(0)
    model = get_model(load_config("language_grpo", overrides).model).eval()
    assert isinstance(model, GenerativeRewardPolicy)
    answers = ["46", "{prompt}", "7"]  # an answer with a template in it is an answer
    assert model.score(PROMPTS, answers, media("vision")).tolist() == [0.25] * 3
    rows = [{"prompt": f"{p}{a} ", "answer": "Score: 7"} for p, a in zip(PROMPTS, answers)]
    batch = {"rows": rows, "action_is_pad": torch.zeros(3, 1, dtype=torch.bool), **media("vision")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model.sft_forward(batch)["loss"].backward()
        optimizer.step()
    assert [verdict.text for verdict in model.judge(PROMPTS, answers, media("vision"))] == ["Score: 7"] * 3
    assert model.score(PROMPTS, answers, media("vision")).tolist() == pytest.approx([0.7] * 3)


def test_the_entropy_mask_keeps_the_highest_of_those_that_count() -> None:
    entropy = torch.tensor([[0.1, 0.9, 5.0], [0.5, 0.2, 0.7]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert highest(entropy, mask, 0.4).tolist() == [[False, True, False], [False, False, True]]
    assert not highest(entropy, torch.zeros_like(mask), 0.4).any()


def test_rows_come_from_files_and_functions(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "2+2=", "answer": "4"}\n')
    assert [row["answer"] for row in read_rows(str(file), ("answer",))] == ["2", "4"]
    assert len(read_rows("rlinf.envs.prompts.arithmetic:held_out", ("prompt", "answer"))) == 256
    dataset = TextDataset(str(file), ("prompt",))
    samples = TextSamples([dataset], [np.array([1])])
    assert samples.load(np.array([0])) == [{"prompt": "2+2=", "answer": "4"}]
    before = dataset.fingerprint()
    file.write_text(file.read_text().replace('"4"', '"5"'))
    assert TextDataset(str(file), ()).fingerprint() != before
    with pytest.raises(DatasetError, match="row 1 lacks chosen; it has prompt, answer"):
        read_rows(str(file), ("chosen",))
    file.write_text("[1]\n")
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: expected a JSON object"):
        read_rows(str(file))
    with pytest.raises(DatasetError, match="cannot be read"):
        read_rows(str(tmp_path / "none.jsonl"))


def test_held_out_problems_are_none_of_those_that_train() -> None:
    from rlinf.envs.prompts import arithmetic

    held_out = {row["prompt"] for row in arithmetic.held_out()}
    for rows in (arithmetic.train(), arithmetic.demonstrations(), arithmetic.preferences()):
        assert held_out.isdisjoint(row["prompt"] for row in rows)
    for row in (*arithmetic.preferences(), *arithmetic.held_out_preferences()):
        a, b = row["prompt"][:-1].split("+")
        assert int(row["chosen"][::-1]) == int(a) + int(b) and row["rejected"] != row["chosen"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "env.steps_per_rollout=10",
            "one episode of model.num_action_chunks tokens: expected 5; got 10",
        ),
        ("env.prompts.success=fluency", "'fluency' is none of the rewards"),
        ("env.prompts.rewards=[{type: exact_match}, {type: exact_match}]", "two have the same name"),
        ("env.prompts.rewards=[{type: reward_model, options: {checkpoint: none}}]", "is no checkpoint"),
        ("model.causal_lm.temprature=2", "temperature"),
        ("model.causal_lm.characters='01231'", "expected one or more, each once; twice: 1"),
        ("model.action_dim=2", "an action is a token: expected 1; got 2"),
    ],
)
def test_mistakes_are_named_before_anything_starts(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("language_grpo", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.model_type=vision_language", "model.vision_language=${model.causal_lm}"],
            "Qwen-VL families",
        ),
        ([*AUDIO, "model.audio_language.config.audio_config.max_source_positions=60"], "a multiple of 50"),
        (["model.causal_lm.config.model_type=lama"], "lama"),
        ([*VISION, "model.vision_language.vllm={}"], "vllm answers for models that read only"),
    ],
)
def test_a_network_of_another_kind_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_model(load_config("language_grpo", overrides).model)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("template='{prompt}'", r"expected \{answer\} in it"),
        ("pattern=score", "has no group"),
        ("pattern='('", "no regular expression"),
        ("low=10", "expected low < high"),
    ],
)
def test_a_judge_without_a_scale_is_refused(key: str, message: str) -> None:
    overrides = [text.replace("vision_language", "generative_reward_vl") for text in VISION]
    with pytest.raises(ConfigError, match=message):
        load_config("language_grpo", [*overrides, f"model.generative_reward_vl.{key}"])


def test_a_language_model_needs_prompts_and_a_simulator_another_model() -> None:
    with pytest.raises(ConfigError, match="tiny_vla plays simulators; got prompts"):
        load_config(
            "language_grpo",
            ["model.model_type=tiny_vla", "~model.causal_lm", "model.tiny_vla={state_dim: 4}"],
        )
    with pytest.raises(ConfigError, match="is for language models; tiny_vla is none"):
        load_config("tabletop_grpo", ["algorithm.kl_beta=0.1"])
    assert isinstance(load_config("arithmetic_reward"), Config)
    with pytest.raises(ConfigError, match=r"learns from pairs \(rlinf sft\): expected 0"):
        load_config("arithmetic_reward", ["runner.max_steps=3"])
