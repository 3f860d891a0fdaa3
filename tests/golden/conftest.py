"""Golden cases: tensors recorded from the reference implementations, found in `--golden-dir`.

A case is a folder with `config.json`, `inputs.safetensors`, `outputs.safetensors` and, where the case has a
network, `weights.safetensors`. A test module says which family of cases it understands:

    pytestmark = pytest.mark.golden("pi0")

    def test_loss(case):                            # once per case of that family in --golden-dir
        case.outputs["loss"], case.config["plain"]  # tensors load one by one; each read is recorded

    @pytest.mark.golden("pi0", each=r"grad\\.(.+)")  # once per matching output of each case
    def test_gradients(case, match): ...

A case that refers to a neighbour's tensors gets it with the fixture `golden_case("pi0")`. Tensors that
nothing read are listed at the end of the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The cases are so small that a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of one file, loaded when read. `read` has the names that were; iterating reads nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: set[str] = set()

    @cached_property
    def _names(self) -> tuple[str, ...]:
        if not self.path.exists():
            return ()
        with safe_open(str(self.path), "pt") as file:
            return tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(f"{self.path} has no tensor {name!r}")
        self.read.add(name)
        with safe_open(str(self.path), "pt") as file:
            return file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class GoldenCase:
    """One folder of recorded tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        self.inputs = TensorFile(path / "inputs.safetensors")
        self.outputs = TensorFile(path / "outputs.safetensors")
        self.weights = TensorFile(path / "weights.safetensors")

    @property
    def name(self) -> str:
        return self.path.name

    def unread(self) -> list[str]:
        files = {"inputs": self.inputs, "outputs": self.outputs, "weights": self.weights}
        return [f"{kind}: {name}" for kind, file in files.items() for name in file if name not in file.read]

    def belongs_to(self, family: str, families: set[str]) -> bool:
        """Whether this is a case of `family`: the longest known name that the case's own begins with."""
        own = str(self.config.get("case", self.name))
        known = [f for f in families | {family} if re.match(re.escape(f) + r"(?![a-z0-9])", own)]
        return bool(known) and max(known, key=len) == family


_CASES = pytest.StashKey[dict[str, GoldenCase]]()
_TESTED = pytest.StashKey[set[str]]()
_PARTIAL = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TESTED] = set()
    config.stash[_PARTIAL] = False


def pytest_deselected(items: list[pytest.Item]) -> None:
    items[0].config.stash[_PARTIAL] = True


def _cases(config: pytest.Config) -> dict[str, GoldenCase]:
    if _CASES not in config.stash:
        folder: Path = config.getoption("--golden-dir")
        paths = [folder] if (folder / "config.json").is_file() else sorted(folder.glob("*/"))
        cases = {path.name: GoldenCase(path) for path in paths if (path / "config.json").is_file()}
        if not cases:
            raise pytest.UsageError(f"--golden-dir {folder}: no <case>/config.json in this folder")
        config.stash[_CASES] = cases
    return config.stash[_CASES]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None or "case" not in metafunc.fixturenames:
        return
    family, each = marker.args[0], marker.kwargs.get("each")
    cases = _cases(metafunc.config)
    families = {path.parent.name for path in Path(__file__).parent.glob("*/config.json")}
    own = [case for case in cases.values() if case.belongs_to(family, families)]
    metafunc.config.stash[_TESTED].update(case.name for case in own)
    if each is None:
        metafunc.parametrize("case", own, ids=[case.name for case in own])
        return
    rows = [(case, match) for case in own for match in _matches(each, case.outputs)]
    ids = [f"{case.name}-{'.'.join(match)}" for case, match in rows]
    metafunc.parametrize("case, match", rows, ids=ids)


def _matches(pattern: str, names: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """The groups of `pattern` at the beginning of the names, each combination once, in the file's order."""
    found = (re.match(pattern, name) for name in names)
    return list(dict.fromkeys(match.groups() for match in found if match))


@pytest.fixture
def golden_case(pytestconfig: pytest.Config) -> Callable[[str], GoldenCase]:
    """`golden_case(name)`: the case in the folder `name` of --golden-dir; a test without it is skipped."""

    def get(name: str) -> GoldenCase:
        if name not in (cases := _cases(pytestconfig)):
            pytest.skip(f"--golden-dir {pytestconfig.getoption('--golden-dir')} has no case {name!r}")
        return cases[name]

    return get


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _CASES not in config.stash or config.option.collectonly:
        return
    terminalreporter.section("golden cases")
    for name, case in config.stash[_CASES].items():
        total, unread = sum(map(len, (case.inputs, case.outputs, case.weights))), case.unread()
        if len(unread) == total:
            why = "not run" if name in config.stash[_TESTED] else "no test in this run asks for this case"
            terminalreporter.line(f"{name}: {why} ({total} tensors)")
        else:
            terminalreporter.line(f"{name}: {total - len(unread)} of {total} tensors read")
            for tensor in () if config.stash[_PARTIAL] else unread:
                terminalreporter.line(f"  not read: {tensor}")
