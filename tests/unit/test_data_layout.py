"""Layouts against datasets, formats by name and by look: what fits, and what is refused in which words."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
from rlinf.data import DataLayout, DatasetError, EpisodeDataset, Feature
from rlinf.data.formats import open_dataset
from rlinf.data.layout import configured, observation_layout, resolve_columns
from rlinf.plugins import DatasetFormatSpec, HookError, PluginError, PluginHost, hookimpl


class Ramp:
    """Two episodes in memory; every value tells its episode and frame."""

    source, fps = "ramp", 10.0
    lengths = np.array([3, 2])

    def __init__(self, source: str = "ramp", cameras: tuple[str, ...] = ("observation.image",)) -> None:
        self.source = source
        self.features = {
            **{key: Feature(shape=(4, 4, 3), dtype="uint8", kind="video") for key in cameras},
            "observation.state": Feature(shape=(2,), dtype="float32"),
            "action": Feature(shape=(2,), dtype="float32"),
        }

    def read(self, episode, frames, keys):
        value = 10 * episode + np.asarray(frames)
        return {key: np.stack([np.full(self.features[key].shape, v) for v in value]) for key in keys}

    def tasks(self, episode, frames):
        return ["go"] * len(frames)

    def check(self, episode):
        pass

    def fingerprint(self):
        return "ramp"


def is_ramp(path: Path) -> bool:
    return path.suffix == ".ramp"


RAMP = DatasetFormatSpec(name="ramp", reader="test_data_layout:Ramp", matches="test_data_layout:is_ramp")


def layout(**changes) -> DataLayout:
    cfg = types.SimpleNamespace(num_action_chunks=changes.pop("horizon", 3), action_dim=2)
    return observation_layout(cfg, **changes)


def test_default_layout_finds_the_usual_names() -> None:
    assert isinstance(Ramp(), EpisodeDataset)
    columns = resolve_columns(layout(), Ramp())
    assert columns.cameras == {"main_images": "observation.image"}
    assert (columns.state, columns.action) == (("observation.state",), ("action",))
    assert columns.offsets.tolist() == [0, 1, 2]


def test_configuration_renames_cameras_and_keys() -> None:
    dataset = Ramp(cameras=("top", "hand"))
    with pytest.raises(
        DatasetError, match=r"ramp: has no observation.images.main or .* its images: top, hand"
    ):
        resolve_columns(layout(), dataset)
    mine = configured(layout(), {"main_images": "top", "wrist_images": "hand"}, [], ["observation.state"])
    columns = resolve_columns(mine, dataset)
    assert columns.cameras == {"main_images": "top", "wrist_images": "hand"}
    assert columns.action == ("observation.state",)
    with pytest.raises(DatasetError, match="no camera 'head'; it takes main_images, wrist_images"):
        configured(layout(), {"head": "top"}, [], [])
    with pytest.raises(DatasetError, match="no nothing for action"):
        resolve_columns(configured(layout(), {"main_images": "top"}, [], ["nothing"]), dataset)


def test_action_timestamps_are_frames_of_the_dataset() -> None:
    def timed(*seconds: float) -> DataLayout:
        return DataLayout(cameras={}, action_horizon=len(seconds), action_timestamps=seconds)

    assert resolve_columns(timed(0.0, 0.2, 0.4), Ramp()).offsets.tolist() == [0, 2, 4]
    with pytest.raises(DatasetError, match=r"10 frames per second.* after 0.25 s"):
        resolve_columns(timed(0.0, 0.25), Ramp())
    with pytest.raises(ValueError, match="expected 2 numbers"):
        DataLayout(cameras={}, action_horizon=2, action_timestamps=(0.0,))


def test_formats_by_name_by_look_and_from_plugins(tmp_path: Path) -> None:
    (tmp_path / "a.ramp").touch()
    assert open_dataset(str(tmp_path / "a.ramp"), "auto", [RAMP]).source.endswith("a.ramp")
    assert open_dataset("anything", "ramp", [RAMP]).source == "anything"
    with pytest.raises(DatasetError, match=r"no format 'rump'; known: auto, .*ramp"):
        open_dataset("anything", "rump", [RAMP])
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_dataset(str(tmp_path / "b.ramp"), "auto", [RAMP])
    (tmp_path / "c").mkdir()
    with pytest.raises(DatasetError, match="looks like none of the formats"):
        open_dataset(str(tmp_path / "c"), "auto", [RAMP])
    rival = DatasetFormatSpec(name="ramp", reader="elsewhere:Ramp")
    with pytest.raises(DatasetError, match="two dataset formats are called 'ramp'"):
        open_dataset("anything", "ramp", [RAMP, rival])
    with pytest.raises(PluginError, match=r"DatasetFormatSpec\.reader"):
        DatasetFormatSpec(name="x", reader="no colon")


def test_a_hook_contributes_formats(own_host: PluginHost) -> None:
    module = types.ModuleType("my_formats")
    module.__dict__["rlinf_dataset_formats"] = hookimpl(specname="rlinf_dataset_formats")(lambda: [RAMP])
    own_host.add_extension(module)
    assert RAMP in own_host.dataset_formats("mlp_policy", "tabletop")
    other = types.ModuleType("bad_formats")
    other.__dict__["rlinf_dataset_formats"] = hookimpl(specname="rlinf_dataset_formats")(lambda: ["x"])
    own_host.add_extension(other)
    with pytest.raises(HookError, match="must return DatasetFormatSpec objects, got 'x'"):
        own_host.dataset_formats("mlp_policy", "tabletop")
