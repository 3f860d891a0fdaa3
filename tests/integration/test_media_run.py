"""Pictures and sounds in runs on real Ray: files through SFT, rollout, rewards, training and evaluation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from rlinf.config import load_config
from rlinf.data.errors import DatasetError
from rlinf.data.media import check_media, media_of
from rlinf.data.text import read_rows
from rlinf.runners.sft import run_sft
from rlinf.runners.train import run_training

WRITE = Path(__file__).parents[2] / "examples" / "prompts" / "write.py"
SMALL = [
    "runner.report=false",
    "runner.loggers=[]",
    "runner.max_steps=1",
    "runner.eval_interval=0",
    "env.num_envs=16",
    "env.eval.num_episodes=8",
    "algorithm.group_size=4",
    "actor.micro_batch_size=16",
    "actor.global_batch_size=16",
    "sft.batch_size=16",
    "sft.max_steps=20",
]


@pytest.fixture(autouse=True)
def no_ray_left() -> Iterator[None]:
    yield
    assert not ray.is_initialized()


def written(kind: str, folder: Path) -> Path:
    """The example's files, 24 rows each."""
    subprocess.run([sys.executable, str(WRITE), kind, str(folder), "24"], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("digits", tmp_path_factory.mktemp("digits"))


def sources(folder: Path) -> list[str]:
    return [
        f"env.prompts.path={folder / 'train.jsonl'}",
        f"env.prompts.eval_path={folder / 'held_out.jsonl'}",
        f"data.train_data_paths={folder / 'demonstrations.jsonl'}",
    ]


def metrics(folder: Path, phase: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["phase"] == phase]


def check_learned(folder: Path) -> dict[str, Any]:
    """SFT's loss fell, and RL's step began with the policy that acted."""
    losses = [row["sft/loss"] for row in metrics(folder, "sft")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    (step,) = metrics(folder, "rl")
    # One optimizer step: nothing has changed since the rollout.
    assert step["train/updates"] == 1 and step["train/ratio"] == pytest.approx(1, abs=1e-4)
    assert math.isfinite(step["train/policy_loss"]) and step["train/grad_norm"] >= 0
    return step


@pytest.fixture(scope="module")
def judge(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scalar reward model that learned from pairs with pictures, in files beside those of `digits`."""
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"chosen": row["answer"], "rejected": str(int(row["answer"]) + 1)}
    (digits / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path_factory.mktemp("judge") / "run"
    network = load_config("digits_grpo").model.model_dump()["vision_language"] | {"max_prompt_length": 24}
    config = load_config(
        "arithmetic_reward",
        [
            *SMALL[:2],
            "env.num_envs=16",
            "env.eval.num_episodes=8",
            "actor.micro_batch_size=16",
            "actor.global_batch_size=16",
            "sft.batch_size=16",
            "sft.max_steps=20",
            "data.val_fraction=0",
            "sft.val_interval=0",
            f"runner.output_dir={folder}",
            f"data.train_data_paths={digits / 'pairs.jsonl'}",
            f"env.preferences.eval_path={digits / 'pairs.jsonl'}",
            "model.model_type=scalar_reward_vl",
            "~model.scalar_reward",
            f"model.scalar_reward_vl={json.dumps(network)}",
        ],
    )
    assert run_sft(config) == 0
    losses = [row["sft/loss"] for row in metrics(folder, "sft")]
    assert sum(losses[-5:]) < sum(losses[:5])
    (evaluation,) = metrics(folder, "eval")
    assert 0 <= evaluation["eval/success_rate"] <= 1
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return checkpoint


@pytest.fixture(scope="module")
def writer(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that learned to write 9 about every answer to a picture."""
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"prompt": row["prompt"] + row["answer"], "answer": "9"}
    (digits / "judgements.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path_factory.mktemp("writer") / "run"
    network = load_config("digits_grpo").model.model_dump()["vision_language"]
    reading = {"template": "{prompt}{answer}", "high": 9, "pattern": "([0-9])", "max_prompt_length": 28}
    config = load_config(
        "digits_grpo",
        [
            *SMALL,
            f"runner.output_dir={folder}",
            f"env.prompts.path={digits / 'judgements.jsonl'}",
            f"env.prompts.eval_path={digits / 'judgements.jsonl'}",
            f"data.train_data_paths={digits / 'judgements.jsonl'}",
            "model.model_type=generative_reward_vl",
            "~model.vision_language",
            f"model.generative_reward_vl={json.dumps({**network, **reading})}",
        ],
    )
    assert run_sft(config) == 0
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return checkpoint


def varied(digits: Path) -> Path:
    """Files like those of `digits`, in which every third picture is there twice, and every third larger."""
    for name in ("train", "held_out", "demonstrations"):
        rows = [json.loads(line) for line in (digits / f"{name}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            if number % 3 == 1:
                row["image"] = [row["image"], row["image"]]
            elif number % 3 == 2:
                with Image.open(digits / row["image"]) as picture:
                    picture.resize((32, 24)).save(digits / f"{row['image']}.large.png")
                row["image"] += ".large.png"
        (digits / f"varied_{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return digits / "varied_"


def test_pictures_go_through_a_whole_run(digits: Path, judge: Path, writer: Path, tmp_path: Path) -> None:
    """Of two sizes, and two of them in some prompts, with both kinds of reward model, each served by a
    process of its own."""
    served = ", ".join(
        f"{{type: reward_model, name: {name}, weight: {weight}, options: {{checkpoint: {checkpoint}}}}}"
        for name, weight, checkpoint in (("judge", 0.5, judge), ("writer", 0.25, writer))
    )
    config = load_config(
        "digits_grpo",
        [
            *SMALL,
            *(text.replace(f"{digits}/", str(varied(digits))) for text in sources(digits)),
            "model.vision_language.max_prompt_length=24",
            f"env.prompts.rewards=[{{type: exact_match}}, {served}]",
            f"runner.output_dir={tmp_path / 'run'}",
        ],
    )
    assert run_training(config) == 0
    step = check_learned(tmp_path / "run")
    assert step["rollout/reward/judge"] != 0
    # What it learned to write is read as the best score.
    assert step["rollout/reward/writer"] > 0.5
    total = step["rollout/reward/exact_match"] + 0.5 * step["rollout/reward/judge"]
    total += 0.25 * step["rollout/reward/writer"]
    assert step["rollout/return"] == pytest.approx(total, abs=1e-5)


def test_paligemma_goes_through_a_whole_run(digits: Path, tmp_path: Path) -> None:
    """It scales its pictures to one size; SFT, rollout and training see the answers in one direction."""
    config = load_config(
        "digits_grpo",
        [
            *SMALL,
            *sources(digits),
            f"runner.output_dir={tmp_path / 'run'}",
            # What an untrained policy can win.
            "env.prompts.rewards=[{type: exact_match}, {type: length, options: {free: 1, limit: 3}}]",
            "~model.vision_language",
            'model.vision_language={characters: "0123456789efghilmrstu\\n", max_prompt_length: 12}',
            "model.vision_language.config={model_type: paligemma}",
            "model.vision_language.config.text_config={hidden_size: 32, intermediate_size: 48, "
            "num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8}",
            "model.vision_language.config.vision_config={hidden_size: 32, intermediate_size: 48, "
            "image_size: 16, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8}",
        ],
    )
    assert run_training(config) == 0
    assert check_learned(tmp_path / "run")["train/grad_norm"] > 0


def test_sounds_go_through_a_whole_run(tmp_path: Path) -> None:
    """Of different lengths."""
    sounds = sources(written("dtmf", tmp_path))
    config = load_config("dtmf_grpo", [*SMALL, *sounds, f"runner.output_dir={tmp_path / 'run'}"])
    assert run_training(config) == 0
    check_learned(tmp_path / "run")


def test_files_are_looked_for_before_anything_starts(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (digits / "held_out.jsonl").read_text().splitlines()
    missing = json.dumps({**json.loads(lines[2]), "image": "images/none.png"})
    broken = digits / "broken.jsonl"
    broken.write_text("\n".join([*lines[:2], "", missing]))
    changed = [f"env.prompts.eval_path={broken}", f"runner.output_dir={tmp_path / 'run'}"]
    config = load_config("digits_grpo", [*SMALL, *sources(digits), *changed])
    assert run_training(config) == 2
    assert f"{broken}:4: image: there is no file {digits / 'images/none.png'}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_row_of_a_group_is_read_once(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = read_rows(str(digits / "train.jsonl"), ("prompt", "answer"))
    opened: list[str] = []
    whole = Image.open
    monkeypatch.setattr(Image, "open", lambda name: opened.append(name) or whole(name))
    images = media_of([first, second, first, first])["main_images"]
    assert opened == [first["image"], second["image"]]
    alone = [media_of([row])["main_images"][0] for row in (first, second)]
    assert np.array_equal(images, [alone[0], alone[1], alone[0], alone[0]])
    assert not np.array_equal(*alone)


def test_what_is_no_picture_and_no_sound_is_named(digits: Path) -> None:
    rows = read_rows(str(digits / "train.jsonl"), ("prompt", "answer"))
    assert check_media("here", rows) == [((16, 24),)] * 24
    assert media_of(rows)["main_images"].shape == (24, 16, 24, 3) and media_of([{"prompt": "1"}]) == {}
    (digits / "text.png").write_text("no picture")
    with wave.open(str(digits / "fast.wav"), "wb") as file:
        file.setnchannels(2), file.setsampwidth(2), file.setframerate(44_100)
        file.writeframes(bytes(400))
    assert check_media("here", [rows[0], {**rows[1], "image": [np.zeros((8, 8, 3)), rows[1]["image"]]}]) == [
        ((16, 24),),
        ((8, 8), (16, 24)),
    ]
    small, text = np.zeros((8, 8, 3), np.uint8), str(digits / "text.png")
    wrong = [
        ({"prompt": "sum", "image": text}, "row 2: image: .*text.png cannot be read as a picture"),
        ({"prompt": "sum", "image": [rows[1]["image"], text]}, "text.png cannot be read as a picture"),
        ({"prompt": "sum", "image": []}, r"row 2: image: expected a picture"),
        ({"prompt": "sum", "image": small[0]}, r"row 2: image: expected a picture \[H, W, 3\]"),
        ({**rows[1], "audio": [0.0, 0.1]}, "row 2: has a picture and a sound"),
        ({"prompt": "sum"}, "row 2: has no image and no audio, row 1 image"),
        ({"prompt": "sum", "audio": str(digits / "fast.wav")}, "16000 Hz.*got 44100 Hz, 16 bit, 2 channels"),
        ({"prompt": "sum", "audio": text}, "cannot be read as WAV"),
    ]
    for row, message in wrong:
        with pytest.raises(DatasetError, match=message):
            check_media("here", [rows[0], row])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["digits_grpo", "dtmf_grpo"])
def test_the_shipped_configurations_learn(name: str, tmp_path: Path) -> None:
    config = load_config(name, [f"runner.output_dir={tmp_path / 'run'}", "runner.report=false"])
    assert run_training(config) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["success_after_rl"] > summary["success_after_sft"] + 0.08
