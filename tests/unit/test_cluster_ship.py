"""Wheels for `--ship`: archives that lead elsewhere, editable installs, what is lacking where."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from rlinf.cluster.errors import UserError
from rlinf.cluster.ship import lacking, unpack
from rlinf.plugins import Plan
from rlinf.plugins.plan import PlanEntry


def archive(path: Path, *members: tuple[str | zipfile.ZipInfo, str]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, content in members:
            out.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "..\\evil.py"])
def test_an_archive_that_leads_elsewhere_writes_nothing(tmp_path: Path, name: str) -> None:
    wheel = archive(tmp_path / "x.whl", ("good.py", ""), (name, "raise SystemExit"))
    with pytest.raises(UserError, match="leads out of the archive"):
        unpack(wheel, tmp_path / "into" / "deep")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["x.whl"]


def test_a_link_in_an_archive(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    wheel = archive(tmp_path / "x.whl", (link, "/etc/passwd"))
    with pytest.raises(UserError, match="'link' leads out"):
        unpack(wheel, tmp_path / "into")


def test_a_sound_archive(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "x.whl", ("a/b.py", "x = 1")), tmp_path / "into")
    assert (tmp_path / "into" / "a" / "b.py").read_text() == "x = 1"


def test_what_is_lacking_is_named_once_and_the_core_never() -> None:
    def entry(group: str, name: str, distribution: str) -> PlanEntry:
        return PlanEntry(
            group=group,
            name=name,
            target="m",
            distribution=distribution,
            version="1",
            content_hash="",
            api_version=1,
        )

    plan = Plan(
        entries=(
            entry("rlinf", "core", "rlinf-core"),
            entry("rlinf.models", "a", "rlinf-plugin-a"),
            entry("rlinf.envs", "b", "rlinf-plugin-b"),
        )
    )
    rows = [("rlinf.models a version", "1", "2"), ("rlinf core content hash", "x", "y")]
    facts = {"n1": {"rows": rows}, "n2": {"rows": [("rlinf.models a", "1", "(absent)")]}, "n3": "no answer"}
    assert lacking(plan, facts) == ["rlinf-plugin-a"]
