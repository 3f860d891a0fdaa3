"""The conformance kit of dataset formats."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rlinf.data import DatasetError, EpisodeDataset, EpisodeWriter, Feature
from rlinf.plugins import DatasetFormatSpec, resolve_attr
from rlinf.testing.law import broken, difference, law, listed, require
from rlinf.testing.ranks import RankError
from rlinf.testing.support import Support

#: What a dataset format may declare not to have.
CAPABILITIES = {"writer": "new datasets can be written", "matches": "a dataset is recognised by its files"}


class DatasetTests:
    """Subclass this in a test module; each inherited test is a law of `rlinf.data.EpisodeDataset`.

    Set `spec`. A format that can be written is tried on episodes that the kit makes up from `features`; for
    one that is read only set `supports = {"writer": Support.no("why")}` and let `make` leave a small dataset
    of at least two episodes.
    """

    #: The format, as the hook `rlinf_dataset_formats` returns it.
    spec: ClassVar[DatasetFormatSpec]
    #: "writer": it is read only; "matches": it is known by name alone.
    supports: ClassVar[Mapping[str, Support]] = {}
    #: What the made-up episodes hold; `fps` and `lengths` are theirs.
    features: ClassVar[Mapping[str, Feature]] = {
        "observation.images.main": Feature(shape=(16, 24, 3), dtype="uint8", kind="image"),
        "observation.state": Feature(shape=(3,), dtype="float32"),
        "action": Feature(shape=(2,), dtype="float32"),
    }
    fps: ClassVar[float] = 10.0
    lengths: ClassVar[tuple[int, ...]] = (6, 4, 5)
    instructions: ClassVar[tuple[str, ...]] = ("push the red cube", "touch it", "pick up the blue block")
    #: By how much images that were written may come back otherwise (lossy codecs), in levels of 255.
    image_atol: ClassVar[float] = 0.0
    #: Files that the reader does not read, by their paths below the dataset, each with the reason.
    unread: ClassVar[Mapping[str, str]] = {}

    def make(self, folder: Path, seed: int = 0) -> str:
        """Leave a dataset in the new folder `folder`; returns the source that the reader takes."""
        with self.writer(folder) as writer:
            for number, length in enumerate(self.lengths):
                writer.add(self.episode(number, length, seed), self.instructions[number])
        return str(folder)

    def episode(self, number: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Made-up frames of an episode: {feature: [length, *shape]}. Images are smooth, as codecs like it."""
        rng = np.random.default_rng([seed, number])
        frames = {}
        for name, feature in self.features.items():
            if feature.is_image:
                height, width, channels = feature.shape
                ramp = np.add.outer(np.arange(height), np.arange(width))[None, :, :, None]
                start = rng.integers(0, 100, (length, 1, 1, channels))
                frames[name] = (start + ramp * 2).clip(0, 255).astype(np.uint8)
            else:
                frames[name] = rng.normal(size=(length, *feature.shape)).astype(feature.dtype)
        return frames

    def writer(self, folder: Path) -> EpisodeWriter:
        if self.spec.writer is None:
            broken("DatasetFormatSpec.writer is None; declare supports = {'writer': Support.no('why')}")
        return resolve_attr(self.spec.writer)(folder, self.features, fps=self.fps)

    def open(self, source: str) -> EpisodeDataset:
        return resolve_attr(self.spec.reader)(source)

    # -- what opening promises ---

    @law(cause="lengths as a list, features as dictionaries, or a source that was made absolute")
    def test_opening_describes_the_dataset(self, tmp_path: Path) -> None:
        """An open dataset has the source as it was given, a positive fps, `Feature`s by name, and lengths
        int64 [episodes], all positive."""
        source = self.make(tmp_path / "data")
        dataset = self.open(source)
        require(isinstance(dataset, EpisodeDataset), f"{type(dataset).__name__} is no EpisodeDataset")
        require(dataset.source == source, f"source is {dataset.source!r} instead of {source!r}")
        require(dataset.fps > 0, f"fps is {dataset.fps!r}")
        wrong = [name for name, feature in dataset.features.items() if not isinstance(feature, Feature)]
        require(
            not wrong and bool(dataset.features), f"no Feature: {listed(wrong) or 'there is none at all'}"
        )
        lengths = np.asarray(dataset.lengths)
        good = isinstance(dataset.lengths, np.ndarray) and lengths.dtype == np.int64 and lengths.ndim == 1
        require(good and len(lengths) > 1 and bool((lengths > 0).all()), f"lengths are {dataset.lengths!r}")

    @law(cause="float64 columns, flattened vectors, or images as [C,H,W] or floats")
    def test_frames_are_what_features_say(self, tmp_path: Path) -> None:
        """`read` gives for every feature an array [frames, *shape] of its dtype; images are uint8 [H,W,3]."""
        dataset = self.open(self.make(tmp_path / "data"))
        frames = dataset.read(0, [0, 1], list(dataset.features))
        require(frames.keys() == dataset.features.keys(), f"read gives {listed(frames)}")
        for name, feature in dataset.features.items():
            got = (frames[name].dtype.name, frames[name].shape)
            require(got == (feature.dtype, (2, *feature.shape)), f"{name} is {got}, its feature {feature}")
            if feature.is_image:
                is_rgb = feature.dtype == "uint8" and len(feature.shape) == 3 and feature.shape[-1] == 3
                require(is_rgb, f"{name} is an image of {feature.dtype} {feature.shape}")

    @law(needs=["writer"], cause="a row that is off by one, a column that is cast, or colours in other order")
    def test_what_was_written_comes_back(self, tmp_path: Path) -> None:
        """Episodes, features, fps and instructions come back as they were written."""
        dataset = self.open(self.make(tmp_path / "data"))
        require(list(dataset.lengths) == list(self.lengths), f"lengths are {list(dataset.lengths)}")
        require(dataset.fps == self.fps, f"fps is {dataset.fps} instead of {self.fps}")
        missing = self.features.keys() - dataset.features.keys()
        require(not missing, f"features are missing: {listed(sorted(missing))}")
        for number, length in enumerate(self.lengths):
            everything = range(length)
            frames = dataset.read(number, everything, list(self.features))
            for name, written in self.episode(number, length).items():
                gap = difference(frames[name].astype(np.float64), written.astype(np.float64))
                allowed = self.image_atol if self.features[name].is_image else 0.0
                require(gap <= allowed, f"{name} of episode {number} is off by up to {gap:.3g}")
            tasks = dataset.tasks(number, everything)
            wrong = tasks != [self.instructions[number]] * length
            require(not wrong, f"the instructions of episode {number} are {listed(tasks)}")

    # -- what reading promises ---

    @law(cause="frames are sorted or made unique before they are read")
    def test_frames_come_in_the_order_asked_for(self, tmp_path: Path) -> None:
        """Frames may be asked for in any order and repeatedly, and features one at a time."""
        dataset = self.open(self.make(tmp_path / "data"))
        keys, last = list(dataset.features), int(dataset.lengths[1]) - 1
        whole = dataset.read(1, range(last + 1), keys)
        order = [last, 0, last, 1]
        some = dataset.read(1, order, keys)
        for name in keys:
            require(np.array_equal(some[name], whole[name][order]), f"{name} of frames {order} differs")
            alone = dataset.read(1, order, [name])
            require(list(alone) == [name], f"read of {name} alone gives {listed(alone)}")
            require(np.array_equal(alone[name], some[name]), f"{name} read alone differs")

    @law(cause="one instruction for the episode instead of one for each frame")
    def test_every_frame_has_an_instruction(self, tmp_path: Path) -> None:
        """`tasks` gives a text for each of the frames asked for."""
        dataset = self.open(self.make(tmp_path / "data"))
        for frames in ([0], [1, 0, 1]):
            tasks = dataset.tasks(0, frames)
            good = isinstance(tasks, list) and all(isinstance(text, str) for text in tasks)
            require(good and len(tasks) == len(frames), f"tasks of frames {frames} are {tasks!r}")

    @law(cause="a cached buffer is handed out: return copies")
    def test_frames_are_the_callers_own(self, tmp_path: Path) -> None:
        """Changing what `read` returned does not change what it returns next."""
        dataset = self.open(self.make(tmp_path / "data"))
        keys = list(dataset.features)
        first = dataset.read(0, [0, 1], keys)
        before = {name: array.copy() for name, array in first.items()}
        for name, array in first.items():
            require(array.flags.writeable, f"{name} cannot be written to")
            array[:] = 0
        again = dataset.read(0, [0, 1], keys)
        changed = [name for name in keys if not np.array_equal(again[name], before[name])]
        require(not changed, f"the next read differs in {listed(changed)}")

    @law(cause="Python's negative indices, or a bare KeyError or IndexError")
    def test_what_does_not_exist_is_refused(self, tmp_path: Path) -> None:
        """A frame, episode or feature that does not exist raises `DatasetError` with the dataset's source."""
        source = self.make(tmp_path / "data")
        dataset = self.open(source)
        key, length = next(iter(dataset.features)), int(dataset.lengths[0])
        asked: tuple[tuple[int, Sequence[int], Sequence[str]], ...] = (
            (0, [length], [key]),
            (0, [-1], [key]),
            (len(dataset.lengths), [0], [key]),
            (0, [0], ["no such feature"]),
        )
        for episode, frames, keys in asked:
            what = f"read({episode}, {list(frames)}, {list(keys)})"
            try:
                dataset.read(episode, frames, keys)
            except DatasetError as error:
                require(source in str(error), f"{what}: the message lacks the source: {error}")
            except Exception as error:
                broken(f"{what} raises {type(error).__name__}: {error}")
            else:
                broken(f"{what} raises nothing")

    # -- what the files promise ---

    @law(cause="open files, sockets or caches that only the process which opened the dataset has")
    def test_another_process_reads_the_same(
        self, two_ranks: Callable[..., list[Any]], tmp_path: Path
    ) -> None:
        """Another process that opens the dataset by its source reads the same frames."""
        source = self.make(tmp_path / "data")
        dataset = self.open(source)
        keys = list(dataset.features)
        own = dataset.read(1, [0, 1], keys)
        try:
            answers = two_ranks(read_by_name, self.spec.reader, source, 1, [0, 1], keys)
        except RankError as error:
            broken(str(error))
        for rank, (fingerprint, theirs) in enumerate(answers):
            require(fingerprint == dataset.fingerprint(), f"process {rank} has fingerprint {fingerprint}")
            changed = [name for name in keys if not np.array_equal(own[name], theirs[name])]
            require(not changed, f"process {rank} reads other {listed(changed)}")

    @law(cause="a path, a time stamp or hash() of a text goes into it; or nothing of the data does")
    def test_fingerprint_is_that_of_the_contents(self, tmp_path: Path) -> None:
        """The fingerprint is equal for a copy in another place, and differs for other episodes."""
        source = self.make(tmp_path / "data")
        first = self.open(source).fingerprint()
        copy = shutil.copytree(source, tmp_path / "elsewhere" / "copy")
        require(self.open(str(copy)).fingerprint() == first, "a copy has another fingerprint")
        if "writer" in self.supports:
            return
        with self.writer(tmp_path / "other") as writer:
            for number, length in enumerate((*self.lengths[:-1], self.lengths[-1] + 1)):
                writer.add(self.episode(number, length), self.instructions[number])
        other = self.open(str(tmp_path / "other")).fingerprint()
        require(other != first, "a dataset with a longer episode has the same fingerprint")

    @law(cause="an error of a library (OSError, JSONDecodeError, ...) comes through, or nothing notices")
    def test_damage_is_found(self, tmp_path: Path) -> None:
        """`check` accepts every episode of a sound dataset. With any one file cut in half, opening raises
        `DatasetError` or `check` of an episode `EpisodeError`, and nothing else."""
        source = Path(self.make(tmp_path / "data"))
        dataset = self.open(str(source))
        for episode in range(len(dataset.lengths)):
            dataset.check(episode)
        for number, path in enumerate(
            sorted(p for p in source.rglob("*") if p.stat().st_size and p.is_file())
        ):
            name = path.relative_to(source)
            if name.as_posix() in self.unread:
                continue
            copy = shutil.copytree(source, tmp_path / f"damaged{number}")
            data = path.read_bytes()
            (copy / name).write_bytes(data[: len(data) // 2])
            try:
                damaged = self.open(str(copy))
                for episode in range(len(damaged.lengths)):
                    damaged.check(episode)
            except DatasetError:
                continue
            except Exception as error:
                broken(f"{name} cut in half: {type(error).__name__}: {error}")
            broken(f"{name} cut in half: nobody notices")

    @law(needs=["writer"], cause="files appear under their final names before the last is written")
    def test_an_unfinished_dataset_is_refused(self, tmp_path: Path) -> None:
        """A writer that ends by an error leaves nothing that can be opened."""

        class Interrupted(Exception):
            pass

        folder = tmp_path / "data"
        try:
            with self.writer(folder) as writer:
                writer.add(self.episode(0, self.lengths[0]), self.instructions[0])
                raise Interrupted
        except Interrupted:
            pass
        try:
            self.open(str(folder))
        except DatasetError:
            return
        broken("it can be opened")

    @law(needs=["writer"], cause="what add() gets is written as it is")
    def test_frames_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        """`add` raises `DatasetError` for a feature that is missing, has another shape, or another length."""
        good = self.episode(0, 4)
        name = next(name for name, feature in self.features.items() if not feature.is_image)
        bad = {
            "a missing feature": {key: value for key, value in good.items() if key != name},
            "a wider feature": {**good, name: np.repeat(good[name], 2, axis=-1)},
            "a shorter feature": {**good, name: good[name][:-1]},
        }
        for number, (what, frames) in enumerate(bad.items()):
            try:
                with self.writer(tmp_path / str(number)) as writer:
                    writer.add(frames, self.instructions[0])
            except DatasetError:
                continue
            broken(f"{what} is accepted")

    @law(needs=["matches"], cause="matches looks at the name, or takes any folder")
    def test_the_format_knows_its_own(self, tmp_path: Path) -> None:
        """`matches` is true of a dataset of the format, false of an empty folder and of one with other
        files."""
        if self.spec.matches is None:
            broken("DatasetFormatSpec.matches is None; declare supports = {'matches': Support.no('why')}")
        matches = resolve_attr(self.spec.matches)
        require(matches(Path(self.make(tmp_path / "data"))) is True, "false of its own dataset")
        other = tmp_path / "other"
        other.mkdir()
        require(matches(other) is False, "true of an empty folder")
        (other / "notes.txt").write_text("nothing")
        (other / "table.json").write_text("{}")
        require(matches(other) is False, "true of a folder with notes.txt and table.json")

    @law(cause="a declaration that was copied, or that outlived its reason: remove it")
    def test_declared_gaps_are_gaps(self) -> None:
        """What `supports` declares missing exists as a capability and is missing indeed."""
        for name in self.supports:
            require(name in CAPABILITIES, f"there is no capability {name!r}; known: {listed(CAPABILITIES)}")
            named = getattr(self.spec, name)
            require(named is None, f"supports[{name!r}] = no, but DatasetFormatSpec.{name} is {named!r}")


def read_by_name(
    reader: str, source: str, episode: int, frames: Sequence[int], keys: Sequence[str]
) -> tuple[str, dict[str, np.ndarray]]:
    """In another process: open and read."""
    dataset = resolve_attr(reader)(source)
    return dataset.fingerprint(), dataset.read(episode, frames, keys)
