"""Options of the whole suite. They live here because pytest reads them before it collects subfolders."""

from pathlib import Path

import pytest
from rlinf.plugins import PluginHost


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder of golden cases (or one case) that the tests in tests/golden compare with "
        "(default: %(default)s)",
    )


@pytest.fixture
def own_host(monkeypatch: pytest.MonkeyPatch) -> PluginHost:
    """The process's plugin host for one test: what it registers, loads or forbids is gone afterwards."""
    host = PluginHost()
    monkeypatch.setattr("rlinf.plugins.host._host", host)
    monkeypatch.setattr("rlinf.plugins.extension._loaded", {})
    return host


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "golden(family, each=None): run once per golden case of the family (fixture `case`) and, with "
        "`each`, once per match of that regular expression among its output names (fixture `match`)",
    )
