"""The pytest plugin that comes with rlinf-core (entry point `rlinf` of the group pytest11).

Every pytest run of the environment imports this module: it imports neither torch nor ray, and does nothing
unless a fixture is asked for, or the project under test is a plugin of rlinf.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rlinf.testing.ranks import RankPool

#: The plugin policy that was in force before this session.
_PREVIOUS = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("rlinf").addoption(
        "--rlinf-all-plugins",
        action="store_true",
        help="let the tests of an rlinf plugin discover all installed plugins, not only its own and the core",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Restrict discovery to the distribution under test and the core: others must not matter."""
    if session.config.getoption("--rlinf-all-plugins"):
        return
    # First the folder where pytest was started: in a workspace of several plugins the root is not theirs.
    folders = (session.config.invocation_params.dir, session.config.rootpath)
    name = next((found for folder in folders if (found := distribution_under_test(folder))), None)
    if name is None:
        return
    from rlinf.plugins import PluginPolicy, configure_host, get_host
    from rlinf.plugins.discovery import canonical

    host = get_host()
    if canonical(name) in {row.distribution for row in host.discover()}:
        session.config.stash[_PREVIOUS] = host.policy
        configure_host(PluginPolicy(allow=(name,)))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _PREVIOUS in config.stash:
        from rlinf.plugins import configure_host

        configure_host(config.stash[_PREVIOUS])


def distribution_under_test(folder: Path) -> str | None:
    """`project.name` of the folder's pyproject.toml; None where there is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # a dependency of pytest there

    path = folder / "pyproject.toml"
    if not path.is_file():
        return None
    return tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("name")


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    """`two_ranks(function, *arguments)` runs a module's function on two gloo ranks in spawned processes and
    returns [result of rank 0, result of rank 1]; see `rlinf.testing.RankPool`."""
    from rlinf.testing.ranks import RankPool

    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def tiny_ray() -> Iterator[Any]:
    """The module `ray`, connected to a real local Ray with two CPUs, which ends with the test module. A Ray
    that is connected already is used and left alone."""
    from rlinf.cluster.ray_cluster import local_ray

    with local_ray(2) as ray:
        yield ray


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: HF_HUB_OFFLINE and its like are set, and a socket reaches nothing but loopback (OSError).
    Holds for this process; what it starts inherits the variables only."""
    from rlinf.testing.network import cut

    cut(monkeypatch)


@pytest.fixture(scope="session")
def fake_tokenizer() -> PreTrainedTokenizerFast:
    """A small, deterministic tokenizer of transformers, made offline: one token per byte, 256 bytes and
    <pad>, <s>, </s>, <unk>; every text decodes to itself."""
    from rlinf.testing.tokenizer import byte_tokenizer

    return byte_tokenizer()
