"""`rlinf sft` of OpenVLA and OFT on a LeRobot dataset alone, images changed at random. The dataset is
recorded by `rlinf data record` and measured by `rlinf data stats`; the export has the original's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cluster_kit import one_ray
from rlinf.cli.main import main
from rlinf.config import load_config
from rlinf.models import get_model
from rlinf_openvla.tokenizers import load_tokenizer
from safetensors.torch import load_file

SMALL = {
    "hidden_size": 32,
    "image_size": [32, 32],
    "llm": {
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
    },
    "vision_towers": [
        {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32, "patch_size": 8, "registers": 1},
        {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32, "patch_size": 8},
    ],
    "center_crop": True,
    "augment": {},
}
#: Weights that no file of the original's has.
OURS = ("value_head.", "action_head.log_std")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset of four episodes."""
    folder = tmp_path_factory.mktemp("openvla") / "cubes"
    record = ["data", "record", str(folder), "--config=openvla_oft_tabletop_sft", "--episodes=4", "--png"]
    assert main(record) == 0
    with one_ray(2):
        yield folder


def own_config(model_type: str, data: Path, folder: Path) -> Path:
    """The shipped configuration, smaller, on the dataset instead of the simulator; OpenVLA has no state."""
    shipped = load_config("openvla_oft_tabletop_sft").model.model_dump()
    own = {**shipped["openvla_oft"], **SMALL, "statistics": str(data), "unnorm_key": "cubes"}
    if model_type == "openvla":
        own = {key: value for key, value in own.items() if key not in ("proprio_dim", "init_log_std")}
    tree: dict[str, Any] = {
        "runner": {"max_steps": 0, "loggers": []},
        "model": {
            "model_type": model_type,
            "action_dim": 7,
            "num_action_chunks": shipped["num_action_chunks"] if model_type == "openvla_oft" else 1,
            "add_value_head": False,
            model_type: own,
        },
        "data": {"train_data_paths": str(data), "workers": 0},
        "actor": {"micro_batch_size": 16, "global_batch_size": 16},
        "sft": {"max_steps": 30, "batch_size": 16, "lr": 3e-3, "save_interval": 30, "export": True},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("model_type", ["openvla_oft", "openvla"])
def test_a_dataset_tunes_and_the_export_loads_back_equal(model_type: str, data: Path, tmp_path: Path) -> None:
    file, run = own_config(model_type, data, tmp_path), tmp_path / "run"
    assert main(["data", "stats", "--config", str(file)]) == 0
    assert main(["sft", "--config", str(file), f"runner.output_dir={run}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["sft/loss"] for row in rows if "sft/loss" in row]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses

    export = run / "export"
    measured = json.loads((data / "norm_stats.json").read_text())["norm_stats"]
    written = json.loads((export / "dataset_statistics.json").read_text())
    assert written == {"cubes": {"action": measured["actions"], **_proprio(model_type, measured)}}
    tokenizer = load_tokenizer(None, str(export))
    assert tokenizer.decode(tokenizer("touch", add_special_tokens=False).input_ids) == "touch"
    reads_state = {"proprio_dim": 7} if model_type == "openvla_oft" else {}
    block = yaml.safe_load(file.read_text())["model"]
    loaded = get_model(
        {**block, "model_path": str(export), model_type: {"max_prompt_tokens": 128, **reads_state}}
    )
    [shard] = (run / "checkpoints" / "step_30" / "state").glob("*.safetensors")
    trained = {
        name.removeprefix("model."): x for name, x in load_file(shard).items() if name != "optim_steps"
    }
    state = {name: x for name, x in loaded.state_dict().items() if not name.startswith(OURS)}
    assert state.keys() == {name for name in trained if not name.startswith(OURS)}
    assert all(torch.equal(x, trained[name]) for name, x in state.items())
    # The statistics are found in the export: actions come in the dataset's units.
    low, high = (torch.tensor(measured["actions"][key]) for key in ("q01", "q99"))
    torch.testing.assert_close(loaded.stats.unnormalize(torch.ones(7)), high, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.stats.unnormalize(-torch.ones(7)), low, atol=1e-5, rtol=1e-5)


def _proprio(model_type: str, measured: dict[str, Any]) -> dict[str, Any]:
    """What `rlinf data stats` says of the state, of which OpenVLA has none."""
    return {"proprio": measured["state"]} if model_type == "openvla_oft" else {}
