"""vLLM as the sampler, for real where it is installed (its CPU build does): `docs/language.md` says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rlinf.config import load_config
from rlinf.models.language.actor import ActorLanguage
from rlinf.models.language.generation import GenerationConfig
from rlinf.runners.train import run_training
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("vllm")

ON_CPU = {"enforce_eager": True, "kv_cache_memory_bytes": 2**24, "max_model_len": 32}
END = 2


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": END, "pad_token_id": 0,
        "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes, **changes)).eval()


def actors(tied: bool = False, **options: Any) -> tuple[ActorLanguage, ActorLanguage]:
    """Equal models; the first answers by vLLM."""
    torch.manual_seed(1)
    first = ActorLanguage(llama(tie_word_embeddings=tied), vllm=ON_CPU, **options)
    second = ActorLanguage(llama(tie_word_embeddings=tied), **options)
    second.load_state_dict(first.state_dict())
    return first, second


PROMPTS = torch.tensor([[0, 0, 7, 8], [3, 4, 5, 6], [0, 9, 9, 9]])
MASK = (PROMPTS != 0).long()


@pytest.mark.parametrize(("tied", "rank"), [(False, 4), (True, 4), (True, 0)])
def test_the_most_likely_answers_follow_the_weights(tied: bool, rank: int) -> None:
    theirs, ours = actors(tied=tied, lora_rank=rank)
    config = GenerationConfig(max_new_tokens=9, eos_token_ids=(END, 30, 31))
    seen = []
    for _ in range(3):
        with torch.no_grad():
            for ours_, theirs_ in zip(ours.parameters(), theirs.parameters(), strict=True):
                # With LoRA adapters alone, as a run sends them.
                if ours_.requires_grad:
                    theirs_.copy_(ours_.add_(0.3 * torch.randn_like(ours_)))
        answers = [actor.generate(PROMPTS, MASK, config=config) for actor in (theirs, ours)]
        for x, y in zip(*answers, strict=True):
            assert_close(x, y)
        seen.append(answers[0][0].tolist())
    assert seen[0] != seen[1] != seen[2]


def test_a_sample_depends_on_its_own_generator_and_on_the_temperature() -> None:
    actor, _ = actors()

    def draw(rows: list[int], seeds: list[int], temperature: float = 1.0) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        config = GenerationConfig(max_new_tokens=6, temperature=temperature, eos_token_ids=(END,))
        prompts = (PROMPTS[rows], MASK[rows])
        sequences, _, actions = actor.generate(*prompts, generators=generators, config=config)
        answers = sequences[:, PROMPTS.shape[1] :]
        return [answer[mask].tolist() for answer, mask in zip(answers, actions, strict=True)]

    together = draw([0, 1, 2], [5, 6, 7])
    assert draw([2, 1, 0], [7, 6, 5]) == together[::-1]
    assert draw([0, 1, 2], [8, 9, 10]) != together
    # Cold, it is the most likely answer.
    assert draw([1], [5], 0.02) == draw([1], [6], 0.02)

    # The first tokens of many answers are distributed as the model says.
    rows, count = [1] * 4000, torch.zeros(40)
    for answer in draw(rows, list(range(4000))):
        count[answer[0]] += 1
    with torch.no_grad():
        expected = actor.model(input_ids=PROMPTS[1:2]).logits[0, -1].softmax(-1)
    assert_close(count / 4000, expected, atol=0.03, rtol=0)


def test_an_end_token_belongs_to_the_answer() -> None:
    actor, _ = actors()
    generators = [torch.Generator().manual_seed(seed) for seed in range(300)]
    config = GenerationConfig(max_new_tokens=12, eos_token_ids=(END,))
    rows = [1] * 300
    prompts = (PROMPTS[rows], MASK[rows])
    sequences, mask, actions = actor.generate(*prompts, generators=generators, config=config)
    answers = sequences[:, 4:]
    lengths = actions.sum(1)
    ended = answers[torch.arange(300), lengths - 1] == END
    assert ended.any() and (lengths[~ended] == 12).all()
    assert (answers == END).sum(1).le(1).all()
    assert_close(mask[:, 4:].bool(), actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_modl_len": 3}, "max_modl_len"),
        ({"max_model_len": 4096}, "max_model_len"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size: expected 1"),
    ],
)
def test_an_option_that_vllm_refuses_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"vllm: .*{message}"):
        ActorLanguage(llama(), vllm={**ON_CPU, **options}).start_engine()


def test_an_engine_without_the_models_weights_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, _ = actors()
    actor.start_engine()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    monkeypatch.setattr(actor._engine._llm, "collective_rpc", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="differ from those of LlamaForCausalLM by"):
        actor.generate(PROMPTS, MASK, config=GenerationConfig(max_new_tokens=8))


def test_a_run_whose_answers_are_vllms(tmp_path: Path) -> None:
    config = load_config(
        "language_grpo",
        [
            f"runner.output_dir={tmp_path}/run",
            "runner.max_steps=2",
            "runner.eval_interval=1",
            "env.num_envs=32",
            "env.eval.num_episodes=8",
            "actor.micro_batch_size=32",
            "actor.global_batch_size=32",
            "sft.max_steps=20",
            "model.causal_lm.config.num_attention_heads=2",
            "model.causal_lm.config.num_key_value_heads=2",
            "model.causal_lm.vllm={enforce_eager: true, kv_cache_memory_bytes: 16777216}",
        ],
    )
    assert run_training(config) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["phase"] == "rl"]
    assert len(rows) == 2 and all(row["train/ratio"] == pytest.approx(1, abs=0.2) for row in rows)
