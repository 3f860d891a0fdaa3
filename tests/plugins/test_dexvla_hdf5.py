"""Episodes in HDF5: reading as the original does, writing, and every way in which a file can be wrong."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rlinf.data.episodes import EpisodeDataset, Feature
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.formats import open_dataset
from rlinf.data.layout import resolve_columns
from rlinf.data.samples import EpisodeSamples
from rlinf.runners.record import features_of
from rlinf_dexvla import plugin
from rlinf_dexvla.build import build
from rlinf_dexvla.data import data_layout, delta_actions
from rlinf_dexvla.hdf5.files import encode_image
from rlinf_dexvla.hdf5.reader import AlohaDataset, open_aloha
from rlinf_dexvla.hdf5.writer import create_aloha
from test_dexvla_kit import TINY
from torch.testing import assert_close

CAMERAS = ("cam_high", "cam_left_wrist")


def write_episode(path, length=6, *, seed=0, compress=False, **attrs):
    """As ALOHA's recorder does. `attrs` go into the file."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update({"compress": compress, **attrs})
        file["action"] = rng.normal(size=(length, 14))
        file["language_raw"] = [b"fold the shirt"]
        file["substep_reasonings"] = [f"step {i}".encode() for i in range(length)]
        file["observations/qpos"] = rng.normal(size=(length, 14))
        file["observations/qvel"] = rng.normal(size=(length, 14))
        for camera in CAMERAS:
            images = rng.integers(0, 256, (length, 24, 32, 3), dtype=np.uint8)
            if compress:
                encoded = [encode_image(image, 95) for image in images]
                padded = np.zeros((length, max(map(len, encoded))), np.uint8)
                for row, image in zip(padded, encoded):
                    row[: len(image)] = image
                images = padded
            file[f"observations/images/{camera}"] = images
    return path


@pytest.fixture
def folder(tmp_path):
    for number, length in ((2, 5), (10, 6)):
        write_episode(tmp_path / f"episode_{number}.hdf5", length, seed=number, sim=True)
    return tmp_path


def test_a_folder_is_a_dataset(folder):
    dataset = open_aloha(str(folder))
    assert isinstance(dataset, EpisodeDataset)
    assert [path.name for path in dataset.files] == ["episode_2.hdf5", "episode_10.hdf5"]
    assert dataset.lengths.tolist() == [5, 6] and dataset.fps == 50
    assert dataset.features["observations/images/cam_high"] == Feature(
        shape=(24, 32, 3), dtype="uint8", kind="image"
    )
    keys = ["action", "observations/qpos", "observations/images/cam_high", "substep_reasonings"]
    found = dataset.read(1, [3, 0, 3], keys)
    with h5py.File(folder / "episode_10.hdf5") as file:
        np.testing.assert_allclose(found["action"], file["action"][()][[3, 0, 3]], rtol=1e-6)
        image = file["observations/images/cam_high"][()][[3, 0, 3]]
    np.testing.assert_array_equal(found["observations/images/cam_high"], image)
    assert found["substep_reasonings"].tolist() == ["step 3", "step 0", "step 3"]
    assert dataset.tasks(0, [0, 1]) == ["fold the shirt"] * 2
    dataset.check(0)


def test_the_plugin_offers_the_format_and_recognises_it(folder):
    formats = plugin.rlinf_dataset_formats()
    assert len(open_dataset(str(folder), "auto", formats).lengths) == 2
    assert len(open_dataset(str(folder / "episode_2.hdf5"), "aloha_hdf5", formats).lengths) == 1
    assert len(open_dataset(str(folder / "*_1*.hdf5"), "aloha_hdf5", formats).lengths) == 1


def test_actions_of_a_real_robot_lag_one_step(tmp_path):
    path = write_episode(tmp_path / "episode_0.hdf5", sim=False)
    found = open_aloha(str(path)).read(0, [0, 1, 4], ["action"])["action"]
    with h5py.File(path) as file:
        np.testing.assert_allclose(found, file["action"][()][[0, 0, 3]], rtol=1e-6)


def test_compressed_images_come_back_in_the_recorders_channel_order(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (1, 3, 4, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    path = write_episode(tmp_path / "episode_0.hdf5", compress=True)
    with h5py.File(path, "a") as file:
        del file["observations/images/cam_high"]
        file["observations/images/cam_high"] = np.stack([encode_image(smooth[0], 95)] * 6)
    found = open_aloha(str(path)).read(0, [1], ["observations/images/cam_high"])
    image = found["observations/images/cam_high"][0].astype(int)
    assert np.abs(image - smooth[0]).mean() < 8 < np.abs(image[..., ::-1] - smooth[0]).mean()


def test_a_reasoning_of_the_whole_episode(tmp_path):
    path = write_episode(tmp_path / "episode_0.hdf5")
    with h5py.File(path, "a") as file:
        del file["substep_reasonings"]
        file["reasoning"] = [b"all of it"]
    assert (
        open_aloha(str(path)).read(0, [0, 4], ["substep_reasonings"])["substep_reasonings"].tolist()
        == ["all of it"] * 2
    )


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change(name, make):
    def change(path):
        with h5py.File(path, "a") as file:
            value = make(file[name][()]) if name in file else make(None)
            del file[name]
            if value is not None:
                file[name] = value

    return change


def _nan(action):
    action[3, 1] = np.nan
    return action


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncate, "truncated, or no HDF5 file"),
        (_change("action", lambda x: None), "/action is missing"),
        (_change("action", lambda x: x[0]), "/action: expected 2 dimensions"),
        (_change("action", _nan), "/action has NaN or infinity at step 3"),
        (_change("observations/qpos", lambda x: x[:4]), "/observations/qpos has 4 steps, /action has 6"),
        (_change("observations/images/cam_high", lambda x: None), "/observations/images/cam_high is absent"),
        (_change("observations/images/cam_high", lambda x: x[..., 0]), "cam_high.* is no image"),
        (_change("observations/images/cam_high", lambda x: x[:, :8]), r"cam_high is \[8, 32, 3\] there"),
        (_change("observations/images/cam_high", lambda x: x.astype("i4")), "expected uint8"),
        (_change("language_raw", lambda x: None), "/language_raw is missing"),
        (_change("substep_reasonings", lambda x: x[:2]), "/substep_reasonings has 2 steps"),
    ],
)
def test_a_damaged_file_is_named_with_the_path_inside_it(tmp_path, damage, message):
    write_episode(tmp_path / "episode_0.hdf5", sim=True)
    bad = write_episode(tmp_path / "episode_1.hdf5", sim=True)
    damage(bad)
    with pytest.raises(EpisodeError, match=rf"episode_1\.hdf5: .*{message}") as error:
        dataset = open_aloha(str(tmp_path))
        dataset.check(0)
        dataset.check(1)
    assert error.value.episode == 1


def test_a_corrupt_image_is_found(tmp_path):
    path = write_episode(tmp_path / "episode_0.hdf5", compress=True)
    with h5py.File(path, "a") as file:
        file["observations/images/cam_left_wrist"][4] = 7
    dataset = open_aloha(str(path))
    with pytest.raises(EpisodeError, match=r"/observations/images/cam_left_wrist\[4\] is no image"):
        dataset.check(0)


def test_no_file_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"no \.hdf5 file"):
        open_aloha(str(tmp_path))


def test_many_files_keep_few_open(tmp_path, monkeypatch):
    monkeypatch.setattr("rlinf_dexvla.hdf5.reader._OPEN_FILES", 3)
    path = write_episode(tmp_path / "episode_0.hdf5", 3)
    for number in range(1, 8):
        shutil.copy(path, tmp_path / f"episode_{number}.hdf5")
    dataset = AlohaDataset(str(tmp_path))
    for episode in range(8):
        dataset.read(episode, [1], ["observations/images/cam_high"])
    assert len(dataset._open._held) == 3 and all(dataset._open._held.values())


FEATURES = {
    "action": Feature(shape=(14,), dtype="float32"),
    "observation.state": Feature(shape=(14,), dtype="float32"),
    "observation.images.main": Feature(shape=(24, 32, 3), dtype="uint8", kind="image"),
}


def test_what_is_written_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    frames = {
        "action": rng.normal(size=(4, 14)).astype(np.float32),
        "observation.state": rng.normal(size=(4, 14)).astype(np.float32),
        "observation.images.main": np.full((4, 24, 32, 3), (200, 40, 90), np.uint8),
    }
    with create_aloha(tmp_path / "new", FEATURES, fps=20) as writer:
        writer.add(frames, "lift the cube")
        writer.add(frames, "lift the cube")
    dataset = open_aloha(str(tmp_path / "new"))
    dataset.check(1)
    assert dataset.fps == 20 and dataset.lengths.tolist() == [4, 4]
    found = dataset.read(1, range(4), list(dataset.features))
    np.testing.assert_array_equal(found["action"], frames["action"])
    np.testing.assert_array_equal(found["observations/qpos"], frames["observation.state"])
    assert np.abs(found["observations/images/main"].astype(int) - (200, 40, 90)).max() < 5
    with pytest.raises(DatasetError, match="already holds episodes"):
        create_aloha(tmp_path / "new", FEATURES, fps=20)


def test_a_writer_refuses_what_has_no_place(tmp_path):
    with pytest.raises(DatasetError, match=r"'force' has no place in the ALOHA layout"):
        create_aloha(tmp_path, {**FEATURES, "force": Feature(shape=(1,), dtype="float32")}, fps=20)
    with pytest.raises(DatasetError, match="needs /observations/qpos"):
        create_aloha(tmp_path, {"action": FEATURES["action"]}, fps=20)


# -- the model's side ----------------------------------------------------------------------------------------


def model(**changes):
    cameras = [{"key": "main_images", "name": "cam_high"}, {"key": "wrist_images", "name": "cam_left_wrist"}]
    return OmegaConf.create(
        {
            "model_type": "dexvla",
            "num_action_chunks": 4,
            "dexvla": {**TINY, "cameras": cameras, **changes},
        }
    )


def test_the_models_layout_finds_its_columns(folder):
    columns = resolve_columns(data_layout(model()), open_aloha(str(folder)))
    assert columns.cameras == {
        "main_images": "observations/images/cam_high",
        "wrist_images": "observations/images/cam_left_wrist",
    }
    assert columns.state == ("observations/qpos",) and columns.action == ("action",)
    assert columns.texts == {"reasonings": "substep_reasonings"}
    stage1 = resolve_columns(data_layout(model(use_vlm=False)), open_aloha(str(folder)))
    assert not stage1.cameras and not stage1.texts


def test_a_recorded_dataset_becomes_a_batch_that_trains(tmp_path):
    """Names of `rlinf data record`: further views are numbered, reasoning is the scripted expert's."""
    rng = np.random.default_rng(0)
    images = {
        f"observation.images.{name}": rng.integers(0, 256, (5, 56, 56, 3), np.uint8)
        for name in ("main", "extra_0")
    }
    frames = {
        "action": rng.normal(size=(5, 4)).astype(np.float32),
        "observation.state": rng.normal(size=(5, 7)).astype(np.float32),
        "reasoning": np.array(["go"] * 3 + ["grip"] * 2),
        **images,
    }
    features = features_of(frames, png=True)
    with create_aloha(tmp_path / "new", features, fps=20) as writer:
        writer.add(frames, "lift the cube")
    cameras = [{"key": "main_images", "name": "cam_high", "height": 56, "width": 56}]
    cameras += [{"key": "extra_view_images.0", "name": "cam_left_wrist", "height": 28, "width": 28}]
    config = model(cameras=cameras)
    config.merge_with({"action_dim": 4, "model_path": None, "add_value_head": False})
    samples = EpisodeSamples([open_aloha(str(tmp_path / "new"))], data_layout(config), [np.arange(1)])
    batch = samples.collate(samples.load(np.array([0, 4])))
    assert batch["reasonings"] == ["go", "grip"] and batch["task_descriptions"] == ["lift the cube"] * 2
    assert batch["action_is_pad"].tolist() == [[False] * 4, [False, True, True, True]]
    losses = build(config, torch.float32).sft_forward(batch)
    assert losses["llm_loss"] > 0 and losses["action_loss"] > 0
    assert_close(losses["loss"], losses["action_loss"] + losses["llm_loss"])


def test_a_camera_that_the_dataset_lacks_is_named(folder):
    layout = data_layout(model(cameras=[{"key": "main_images", "name": "cam_low"}]))
    with pytest.raises(DatasetError, match=r"has no observations/images/cam_low"):
        resolve_columns(layout, open_aloha(str(folder)))


def test_delta_actions_are_differences():
    layout = data_layout(model(delta_control=True))
    assert layout.action_horizon == 5
    actions = np.array([[0.0], [1.0], [3.0], [3.0]])
    sample = delta_actions({"actions": actions, "action_is_pad": np.array([False, False, False, True])})
    assert sample["actions"].ravel().tolist() == [1, 2, 0]
    assert sample["action_is_pad"].tolist() == [False, False, True]
