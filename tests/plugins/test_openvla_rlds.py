"""RLDS folders: records and Examples written by protobuf's own code, and how they can be wrong."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from rlinf.cli.main import main
from rlinf.data.episodes import EpisodeDataset, Feature
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.formats import open_dataset
from rlinf.data.layout import resolve_columns
from rlinf.testing import DatasetTests, Support
from rlinf_openvla import plugin
from rlinf_openvla.data_layout import data_layout
from rlinf_openvla.rlds.reader import is_rlds, open_rlds
from rlinf_openvla.rlds.records import crc32c, masked_crc

LENGTHS, SIDE, DIM = (5, 3, 4), 16, 7


@functools.cache
def example_class():
    """The class of `tf.train.Example`, from its definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    for kind, number in (("Bytes", 12), ("Float", 2), ("Int64", 3)):
        field = file.message_type.add(name=f"{kind}List").field.add(name="value", number=1, label=3)
        field.type = number
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, kind in enumerate(("Bytes", "Float", "Int64"), start=1):
        feature.field.add(
            name=f"{kind.lower()}_list",
            number=number,
            label=1,
            type=11,
            type_name=f".t.{kind}List",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    features.field.add(name="feature", number=1, label=3, type=11, type_name=".t.Features.FeatureEntry")
    message = file.message_type.add(name="Example")
    message.field.add(name="features", number=1, label=1, type=11, type_name=".t.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def tensor(*shape: int, dtype: str = "float32") -> dict:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": "none"}}


def children(**features: dict) -> dict:
    return {"featuresDict": {"features": features}}


STEP = children(
    observation=children(
        image={"image": {"shape": {"dimensions": [str(SIDE), str(SIDE), "3"]}, "encodingFormat": "png"}},
        state=tensor(8),
    ),
    action=tensor(DIM),
    reward=tensor(),
    step_index=tensor(dtype="int64"),
    is_first=tensor(dtype="bool"),
    language_instruction={"text": {}},
)


def episode(length: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation.image": rng.integers(0, 256, (length, SIDE, SIDE, 3), dtype=np.uint8),
        "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
        "action": rng.normal(size=(length, DIM)).astype(np.float32),
        "reward": np.eye(length, dtype=np.float32)[-1][:, None],
        "step_index": np.arange(length, dtype=np.int64)[:, None] * 300 - 5,
    }


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def encoded(content: dict[str, np.ndarray], instruction: str) -> bytes:
    message, length = example_class()(), len(content["action"])
    for name, values in content.items():
        feature = message.features.feature[f"steps/{name.replace('.', '/')}"]
        if values.dtype == np.uint8:
            feature.bytes_list.value.extend(png(image) for image in values)
        elif values.dtype == np.int64:
            feature.int64_list.value.extend(values.ravel().tolist())
        else:
            feature.float_list.value.extend(values.ravel().tolist())
    message.features.feature["steps/is_first"].int64_list.value.extend([1] + [0] * (length - 1))
    text = message.features.feature["steps/language_instruction"].bytes_list
    text.value.extend([instruction.encode()] * length)
    message.features.feature["episode_metadata/file_path"].bytes_list.value.append(b"somewhere")
    return message.SerializeToString()


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def write(folder: Path, step: dict, episodes: list[tuple[dict[str, np.ndarray], str]]) -> Path:
    """A dataset in two files."""
    folder.mkdir(exist_ok=True)
    (folder / "features.json").write_text(json.dumps(children(steps={"sequence": {"feature": step}})))
    records = [record(encoded(content, text)) for content, text in episodes]
    for shard, part in enumerate((records[:2], records[2:])):
        (folder / f"toy-train.tfrecord-{shard:05d}-of-00002").write_bytes(b"".join(part))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "toy", STEP, [(episode(n, i), f"task {i}") for i, n in enumerate(LENGTHS)])


class TestRlds(DatasetTests):
    spec = plugin.rlinf_dataset_formats()[0]
    supports = {"writer": Support.no("LeRobot is what new datasets are written as")}
    features = {
        "observation.image": Feature(shape=(16, 24, 3), dtype="uint8", kind="image"),
        "observation.state": Feature(shape=(3,), dtype="float32"),
        "action": Feature(shape=(2,), dtype="float32"),
    }

    def make(self, folder: Path, seed: int = 0) -> str:
        image = {"image": {"shape": {"dimensions": ["16", "24", "3"]}, "encodingFormat": "png"}}
        step = children(
            observation=children(image=image, state=tensor(3)),
            action=tensor(2),
            language_instruction={"text": {}},
        )
        rows = enumerate(zip(self.lengths, self.instructions, strict=True))
        return str(write(folder, step, [(self.episode(i, n, seed), text) for i, (n, text) in rows]))


def test_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720


def test_a_folder_is_a_dataset(folder) -> None:
    dataset = open_dataset(str(folder), contributed=plugin.rlinf_dataset_formats())
    assert isinstance(dataset, EpisodeDataset) and is_rlds(folder)
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert set(dataset.features) == set(episode(1, 0))
    for number, length in enumerate(LENGTHS):
        frames = [length - 1, 0, 0]
        found = dataset.read(number, frames, list(dataset.features))
        for key, values in episode(length, number).items():
            np.testing.assert_array_equal(found[key], values[frames], err_msg=key)
            assert found[key].dtype == values.dtype
        assert dataset.tasks(number, frames) == [f"task {number}"] * 3
        dataset.check(number)


def test_loader_processes_read_the_same(folder) -> None:
    dataset = open_rlds(str(folder))
    again = pickle.loads(pickle.dumps(dataset))
    assert again.fingerprint() == dataset.fingerprint() == open_rlds(str(folder)).fingerprint()
    np.testing.assert_array_equal(
        again.read(1, [2], ["action"])["action"], dataset.read(1, [2], ["action"])["action"]
    )


def test_a_changed_byte_is_found(folder) -> None:
    file = next(folder.glob("*00000-of*"))
    content = bytearray(file.read_bytes())
    content[content.index(episode(LENGTHS[1], 1)["action"].tobytes())] ^= 1
    file.write_bytes(content)
    dataset = open_rlds(str(folder))
    dataset.check(0)
    with pytest.raises(EpisodeError, match="checksum of the record"):
        dataset.check(1)


def test_what_is_no_rlds_is_refused(folder, tmp_path) -> None:
    file = next(folder.glob("*00000-of*"))
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    with pytest.raises(DatasetError, match="ends within a record"):
        open_rlds(str(folder))
    file.write_bytes(b"no record at all, only text")
    with pytest.raises(DatasetError, match="no TFRecord begins at byte 0"):
        open_rlds(str(folder))
    file.write_bytes(b"")
    with pytest.raises(DatasetError, match="is empty"):
        open_rlds(str(folder))
    file.write_bytes(record(b"\xff" * 40))
    with pytest.raises(DatasetError, match="episode 0"):
        open_rlds(str(folder))
    (folder / "features.json").unlink()
    with pytest.raises(DatasetError, match=r"features\.json"):
        open_rlds(str(folder))
    with pytest.raises(DatasetError, match="no file"):
        open_rlds(str(tmp_path / "nowhere"))


@pytest.mark.skipif(not find_spec("pyarrow") or not find_spec("av"), reason="needs rlinf-core[data]")
def test_converted_to_lerobot(folder, tmp_path, capsys) -> None:
    target, renamed = tmp_path / "new", {"observation.image": "observation.images.main"}
    command = ["data", "convert", str(folder), str(target), "--png", "--fps", "5"]
    assert main([*command, "--rename", "observation.img=x"]) == 2
    assert "has no observation.img; it has" in capsys.readouterr().err
    assert main([*command, "--rename", "observation.image=observation.images.main"]) == 0
    assert "3 episodes, 12 frames, lerobot" in capsys.readouterr().out
    new = open_dataset(str(target))
    assert new.fps == 5 and new.lengths.tolist() == list(LENGTHS)
    for number, length in enumerate(LENGTHS):
        found = new.read(number, range(length), list(new.features))
        for key, values in episode(length, number).items():
            np.testing.assert_array_equal(found[renamed.get(key, key)].reshape(values.shape), values)
        assert new.tasks(number, [0]) == [f"task {number}"]
    assert main(command) == 2 and "is not empty" in capsys.readouterr().err


def test_what_cannot_be_converted_is_said(folder, tmp_path, capsys) -> None:
    for options, said in (
        (["--to", "rlds"], "'rlds' is no format that can be written; these are: "),
        (["--rename", "action"], "--rename: expected OLD=NEW, got 'action'"),
        (["--fps", "0"], "--fps: expected a number > 0"),
    ):
        assert main(["data", "convert", str(folder), str(tmp_path / "new"), *options]) == 2
        assert said in capsys.readouterr().err.replace("\n", " ")


def test_the_model_finds_its_columns(folder) -> None:
    cfg = OmegaConf.create(
        {"model_type": "openvla_oft", "num_action_chunks": 4, "openvla_oft": {"proprio_dim": 8}}
    )
    columns = resolve_columns(data_layout(cfg), open_rlds(str(folder)))
    assert columns.cameras == {"main_images": "observation.image"}
    assert columns.state == ("observation.state",) and columns.action == ("action",)
    assert columns.offsets.tolist() == [0, 1, 2, 3]
