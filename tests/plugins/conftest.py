"""Plugins for the tests of this folder, installed as `pip install -e` would leave them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

Install = Callable[[str, Mapping[str, str], Path], None]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mutants_on_path() -> Iterator[None]:
    """For modules that put `mutants` on sys.path: this process is the mutants' home until it is off again."""
    os.environ["RLINF_MUTANT_HOME"] = str(os.getpid())
    yield
    del os.environ["RLINF_MUTANT_HOME"]
    sys.path.remove(str(Path(__file__).parent / "mutants"))


@pytest.fixture(scope="session")
def install_editable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    """`install_editable(distribution, {model_type: module}, sources)`: metadata on sys.path, as the driver
    and the processes that it spawns see it."""
    before = list(sys.path)

    def install(name: str, models: Mapping[str, str], sources: Path) -> None:
        folder = tmp_path_factory.mktemp(name.replace("-", "_"))
        metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "direct_url.json").write_text(
            f'{{"url": "file://{sources}", "dir_info": {{"editable": true}}}}'
        )
        lines = "".join(f"{model_type} = {module}\n" for model_type, module in models.items())
        (metadata / "entry_points.txt").write_text(f"[rlinf.models]\n{lines}")
        sys.path[:0] = [str(folder), str(sources)]

    yield install
    sys.path[:] = before
