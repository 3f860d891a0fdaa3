"""Plugins in Ray workers with another environment than the driver's: points 12 and 13 of the contract."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from plugin_kit import Environment, Source, build

PLUGIN = """
from rlinf.plugins import ModelSpec, hookimpl

@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type=model_type, builder="far_code:build")

@hookimpl
def rlinf_worker_started(role, rank):
    import far_code
    far_code.started.append([role, rank])
"""
CODE = "started = []\ndef build(cfg, torch_dtype):\n    return 'version {}'\n"


def far(version: str) -> Source:
    modules = {"far_plugin": PLUGIN, "far_code": CODE.format(version)}
    return Source(
        name="rlinf-plugin-far", version=version, modules=modules, models={"far_model": "far_plugin"}
    )


EXTENSION = """
from rlinf.plugins import get_host

def build(cfg, torch_dtype):
    return "from the extension"

def register():
    get_host().register_model("extended", build)
"""
BROKEN_EXTENSION = "def register():\n    raise KeyError('no such shelf')\n"

# A driver: starts actors in the environments that it is told and reports how each came through its preflight.
DRIVER = """
import json, os, sys
import ray
from rlinf.plugins import get_host, load_ext_module

load_ext_module()
host = get_host()
plan = host.plan("far_model")
models = ["far_model", "extended"]
extended = host.plan(models).to_json() if "extended" in host.model_types() else plan.to_json()

@ray.remote(num_cpus=0)
class Worker:
    def preflight(self, plan, models, variables):
        import os
        from rlinf.plugins import Plan, get_host, load_ext_module, verify_plan

        os.environ.update(variables)
        load_ext_module()
        verify_plan(Plan.from_json(plan))
        host = get_host()
        host.hook.rlinf_worker_started(role="actor", rank=3)
        import far_code
        built = [host.resolve(host.model_spec(name), "builder")(None, None) for name in models]
        return [built, far_code.started]

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
cases = json.loads(os.environ["CASES"])
actors = {name: Worker.options(runtime_env=case["runtime_env"]).remote() for name, case in cases.items()}
calls = {
    name: actors[name].preflight.remote(
        extended if case["extended"] else plan.to_json(),
        models if case["extended"] else models[:1],
        case["variables"],
    )
    for name, case in cases.items()
}
results = {}
for name, call in calls.items():
    try:
        results[name] = ray.get(call, timeout=240)
    except ray.exceptions.RayTaskError as error:
        results[name] = [type(error.cause).__name__, str(error.cause)]
ray.shutdown()
print(json.dumps(results))
"""


def case(
    python: Path | None = None, path: Path | None = None, extended: bool = False, **variables: str
) -> dict[str, Any]:
    runtime_env: dict[str, Any] = {}
    if python is not None:
        runtime_env["py_executable"] = str(python)
    if path is not None:
        runtime_env["env_vars"] = {"PYTHONPATH": str(path)}
    return {"runtime_env": runtime_env, "extended": extended, "variables": variables}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One driver with one Ray; each actor is one case."""
    folder = tmp_path_factory.mktemp("ray")
    new, old = far("2.0"), far("1.9")
    wheels = build(folder, [new, old])
    driver = Environment(folder / "driver", new.wheel(wheels))
    without = Environment(folder / "without")
    older = Environment(folder / "older", old.wheel(wheels))
    patched = Environment(folder / "patched", new.wheel(wheels))
    with (patched.packages / "far_code.py").open("a") as stream:
        stream.write("started.append('patched by hand')\n")
    modules, broken = folder / "modules", folder / "broken"
    for place, code in ((modules, EXTENSION), (broken, BROKEN_EXTENSION)):
        place.mkdir()
        (place / "far_extension.py").write_text(code)
    cases = {
        "without": case(without.python),
        "older": case(older.python),
        "patched": case(patched.python),
        "extension by variable": case(extended=True, RLINF_EXT_MODULE="far_extension"),
        "extension by plan": case(extended=True, RLINF_EXT_MODULE=""),
        "extension missing": case(extended=True, path=folder, RLINF_EXT_MODULE=""),
        "extension broken": case(extended=True, path=broken, RLINF_EXT_MODULE="far_extension"),
    }
    script = folder / "driver.py"
    script.write_text(DRIVER)
    done = driver.run(
        str(script),
        path=[modules],
        RLINF_EXT_MODULE="far_extension",
        CASES=json.dumps(cases),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def test_12_extension_module_is_loaded_in_driver_and_workers(results: dict[str, Any]) -> None:
    expected = [["version 2.0", "from the extension"], [["actor", 3]]]
    assert results["extension by variable"] == expected
    assert (
        results["extension by plan"] == expected
    )  # the worker's variable is empty: names travel in the plan


def test_12_extension_module_that_fails_in_a_worker_stops_it(results: dict[str, Any]) -> None:
    error, text = results["extension broken"]
    assert error == "PluginLoadError"
    assert "far_extension" in text and "KeyError: 'no such shelf'" in text and "in register" in text
    assert os.path.join("broken", "far_extension.py") in text
    error, text = results["extension missing"]
    assert error == "PlanMismatchError"
    assert "far_extension" in text and "ModuleNotFoundError" in text and "extended" in text


def test_12_extension_module_that_fails_in_the_driver(tmp_path: Path) -> None:
    (tmp_path / "far_extension.py").write_text(
        "from rlinf.plugins import get_host\n"
        "def build(cfg, torch_dtype): pass\n"
        "def register():\n    get_host().register_model('half', build)\n    import not_there_at_all\n"
    )
    environment = Environment(tmp_path / "env")
    code = (
        "try:\n    rp.load_ext_module()\n"
        "except rp.PluginError as error:\n    value = [str(error), list(rp.get_host().model_types())]"
    )
    text, known = environment.outcome(code, path=[tmp_path], RLINF_EXT_MODULE="far_extension").value
    assert "not_there_at_all" in text and "line 5, in register" in text
    assert "half" not in known  # whole or not at all
    assert environment.outcome("value = rp.load_ext_module()").warnings == ()


def test_13_worker_without_the_plugin_is_refused(results: dict[str, Any]) -> None:
    error, text = results["without"]
    assert error == "PlanMismatchError"
    assert "rlinf.models far_model" in text and "rlinf-plugin-far 2.0" in text
    assert "unknown model_type 'far_model'" in text
    assert os.path.join("without", "bin", "python") in text


def test_13_worker_with_another_plugin_is_refused(results: dict[str, Any]) -> None:
    error, text = results["older"]
    assert error == "PlanMismatchError"
    rows = [line.split() for line in text.splitlines()]
    assert ["rlinf.models", "far_model", "version", "2.0", "1.9"] in rows
    error, text = results["patched"]
    assert error == "PlanMismatchError"
    rows = [line.split()[:4] for line in text.splitlines() if line.startswith("  rlinf")]
    assert rows == [["rlinf.models", "far_model", "content", "hash"]]
