"""What of the plugin host needs no installed plugin: specs, metadata as it may lie on disk, plans, start
time."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rlinf.plugins import (
    ActionProcessorSpec,
    EnvSpec,
    ModelSpec,
    Plan,
    PlanEntry,
    PluginError,
    PluginLoadError,
    PluginPolicy,
    WrapPolicySpec,
    resolve_attr,
)
from rlinf.plugins.discovery import Discovered, judge, scan
from rlinf.plugins.probe import probe

ROOT = Path(__file__).parents[2]


def test_import_is_light() -> None:
    code = (
        "import sys, rlinf.plugins\n"
        "names = ['torch', 'ray', 'transformers', 'pluggy', 'pydantic', 'dataclasses']\n"
        "assert not [name for name in names if name in sys.modules]\n"
        "from rlinf.plugins import get_host, PluginPolicy, load_ext_module\n"
        "get_host().discover()\n"
        "assert not [name for name in names[:5] if name in sys.modules]\n"
        "from rlinf.plugins import *\n"
        "assert not [name for name in names[:3] if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: ModelSpec(model_type="", builder="a:b"), "ModelSpec.model_type"),
        (lambda: ModelSpec(model_type="m", builder="a.b"), "expected 'module:attr'"),
        (lambda: ModelSpec(model_type="m", builder="a:b", lora_targets="abc"), "tuple of non-empty strings"),
        (lambda: ModelSpec(model_type="m", builder="a:b", lora_targets=("(",)), "no regular expression"),
        (lambda: ModelSpec(model_type="m", builder="a:b", wrap_policy={}), "expected a WrapPolicySpec"),
        (lambda: WrapPolicySpec(predicates=("a",)), "WrapPolicySpec.predicates"),
        (lambda: WrapPolicySpec(module_path_patterns=("[",)), "module_path_patterns"),
        (lambda: EnvSpec(env_type="e", factory="x y:z"), "EnvSpec.factory"),
        (
            lambda: ActionProcessorSpec(env_type="e", model_type="*", function=""),
            "ActionProcessorSpec.function",
        ),
    ],
)
def test_specs_refuse_what_cannot_be(make: Any, part: str) -> None:
    with pytest.raises(PluginError, match=part.replace("(", r"\(")):
        make()


def write_metadata(folder: Path, name: str, entry_points: str, version: str = "") -> None:
    info = folder / name
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(entry_points)
    (info / ("METADATA" if name.endswith("dist-info") else "PKG-INFO")).write_text(f"Version: {version}\n")


def test_scan_reads_odd_but_valid_metadata(tmp_path: Path) -> None:
    text = "# comment\n[console_scripts]\nx = rlinf.x:y\n\n[ rlinf.models ]\n a.b = mod.sub \n; note\n"
    text += "c=mod\nc = mod\n"
    write_metadata(tmp_path, "Odd_.Name-1.0+local.2.dist-info", text)
    write_metadata(tmp_path, "developed.egg-info", "[rlinf.envs]\ne = env_mod\n", version="0.7")
    (tmp_path / "a.zip").write_bytes(b"no archive")
    found = scan([str(tmp_path), str(tmp_path / "a.zip"), str(tmp_path / "absent"), f"{tmp_path}/."])
    rows = {(row.group, row.name, row.target, row.distribution, row.version) for row in found.entries}
    assert rows == {
        ("rlinf.models", "a.b", "mod.sub", "odd-name", "1.0+local.2"),
        ("rlinf.models", "c", "mod", "odd-name", "1.0+local.2"),
        ("rlinf.envs", "e", "env_mod", "developed", "0.7"),
    }
    assert len(found.entries) == 3 and found.problems == ()


def test_scan_reports_what_it_cannot_read(tmp_path: Path) -> None:
    write_metadata(tmp_path, "bad-1.0.dist-info", "[rlinf.models]\nno equals sign\n")
    write_metadata(tmp_path, "half-1.0.dist-info", "[rlinf.models]\nhalf = half\n")
    (tmp_path / "half-1.0.dist-info" / "METADATA").unlink()
    (tmp_path / "bytes-1.0.dist-info").mkdir()
    (tmp_path / "bytes-1.0.dist-info" / "entry_points.txt").write_bytes(b"[rlinf.models]\n\xff = x\n")
    problems = " | ".join(sorted(scan([str(tmp_path)]).problems))
    assert "bad 1.0" in problems and "line 2: expected 'name = module'" in problems
    assert "bytes 1.0" in problems and "no METADATA" in problems


def test_judgement_does_not_depend_on_order() -> None:
    rows = [
        Discovered(group="rlinf.models", name="m", target=f"mod_{letter}", distribution=f"dist-{letter}")
        for letter in "abc"
    ]
    policy = PluginPolicy(deny=("dist-a",), override={"m": "Dist_C"})
    forward, backward = judge(rows, policy), judge(rows[::-1], policy)
    states = {row.distribution: row.state for row in forward}
    assert states == {"dist-a": "denied", "dist-b": "overridden", "dist-c": "ok"}
    assert sorted(forward, key=str) == sorted(backward, key=str)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("x = 1\n", ""),
        ("try:\n    import not_installed_at_all\nexcept ImportError:\n    pass\n", ""),
        ("def f(:\n", "SyntaxError"),
        ("import os\nraise OSError\n", "raises at import"),
        ("from not_installed_at_all.sub import x\n", "'not_installed_at_all', which is not installed"),
    ],
)
def test_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, fault: str) -> None:
    (tmp_path / "probed_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fault in probe("probed_module") and bool(fault) == bool(probe("probed_module"))
    assert "probed_module" not in sys.modules


def test_resolve_attr() -> None:
    assert resolve_attr("json.decoder:JSONDecoder.decode", of="x") is __import__("json").JSONDecoder.decode
    assert resolve_attr(len) is len
    with pytest.raises(PluginLoadError, match=r"spec of far: .*module 'json' .*no attribute 'dmps'.*'dumps'"):
        resolve_attr("json:dmps", of="spec of far")
    with pytest.raises(PluginLoadError, match=r"no module 'json\.nowhere'"):
        resolve_attr("json.nowhere:x")
    with pytest.raises(PluginError, match="expected 'module:attr'"):
        resolve_attr("json")


def test_errors_cross_processes_whole() -> None:
    error = PluginLoadError("text", distribution="d", version="1", file="f", original_traceback="tb")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError) and str(again) == "text"
    assert (again.distribution, again.version, again.file, again.original_traceback) == ("d", "1", "f", "tb")


def entry(**changes: Any) -> PlanEntry:
    made = PlanEntry(
        group="rlinf.models",
        name="m",
        target="mod",
        distribution="dist",
        version="1.0",
        content_hash="a" * 64,
        api_version=1,
    )
    return replace(made, **changes)


def test_plan_round_trip_and_differences() -> None:
    policy = PluginPolicy(allow=("B_b", "a"), deny=("c",), override={"m": "B.b"}, load=("extra",))
    plan = Plan(entries=(entry(), entry(group="rlinf.envs", name="e")), policy=policy)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.differences(plan) == []
    other = Plan(entries=(entry(version="1.1", content_hash="b" * 64),), policy=PluginPolicy())
    assert plan.differences(other) == [
        "plugins.allow: ('a', 'b-b') != None",
        "plugins.deny: ('c',) != ()",
        "plugins.override: {'m': 'b-b'} != {}",
        "plugins.load: ('extra',) != ()",
        "rlinf.models m version: 1.0 != 1.1",
        "rlinf.models m content hash: aaaaaaaaaaaa != bbbbbbbbbbbb",
        "rlinf.envs e: dist 1.0 != (absent)",
    ]
    assert other.differences(plan)[-1] == "rlinf.envs e: (absent) != dist 1.0"
    for text in ("{}", "[]", "nonsense", '{"entries": [{}], "policy": {}}'):
        with pytest.raises(PluginError, match="no plugin plan"):
            Plan.from_json(text)


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("discovery_benchmark", ROOT / "benchmarks" / "discovery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_list_is_quick_with_500_distributions(benchmark: ModuleType) -> None:
    """The bound is 2; `measure` itself fails if a plugin or a heavy module is imported."""
    names = ("bare entry_points(group=...)", "rlinf plugins list")
    medians = benchmark.measure(500, 20, 5, {name: benchmark.COMMANDS[name] for name in names})
    assert medians[names[1]] < 2 * medians[names[0]]
