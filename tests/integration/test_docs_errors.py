"""The page "What happens when": every situation of its table gives the message that stands there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rlinf.cli.main import main
from rlinf.plugins import PluginPolicy, configure_host, get_host

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "_site"))

from errors import CASES, Case, errors_page

ALL = [pytest.param(case, id=f"{section}: {case.when}") for section, cases in CASES.items() for case in cases]


@pytest.fixture(autouse=True)
def own_host() -> Iterator[None]:
    before, path = get_host().policy, list(sys.path)
    yield
    sys.path[:] = path
    configure_host(before)


def install(folder: Path, distribution: str, source: str) -> None:
    """What `pip install` leaves behind: a module (of a name that no other case has imported), and metadata
    with an entry point."""
    name = distribution.replace("-", "_")
    module = f"{name}_{abs(hash(folder))}"
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "RECORD").write_text(f"{module}.py,,\n{metadata.name}/METADATA,,\n")
    (metadata / "entry_points.txt").write_text(f"[rlinf.models]\nmine = {module}\n")


@pytest.mark.parametrize("case", ALL)
def test_the_situation_gives_this_message(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in case.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for distribution, source in case.plugins.items():
        install(tmp_path / "site", distribution, source)
    if case.plugins:
        monkeypatch.syspath_prepend(tmp_path / "site")
    configure_host(PluginPolicy())
    monkeypatch.chdir(tmp_path)
    try:
        status = main(case.command.split()[1:])
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    shown = capsys.readouterr().err
    assert status in (1, 2), shown
    for text in case.says:
        assert text in shown
    assert case.plugins or "Traceback" not in shown  # a plugin's own code is shown with its traceback


def test_the_page_lists_the_messages_of_the_code() -> None:
    page = errors_page()
    for text in ("matches no module of …", "force=True to replace it", "is offered more than once"):
        assert text in page
    assert page.count("\n| `") > 150
