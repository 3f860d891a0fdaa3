"""The plugin host with distributions that pip really installed: points 1 to 11 of its contract."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugin_kit import Environment, Source, build, install_to_folder


def spec_module(builder: str = "good_code:build", fields: str = "", more: str = "") -> str:
    return (
        "from rlinf.plugins import ModelSpec, EnvSpec, ActionProcessorSpec, hookimpl\n\n"
        "@hookimpl\n"
        "def rlinf_model_spec(model_type):\n"
        f"    return ModelSpec(model_type=model_type, builder={builder!r}{fields})\n\n{more}"
    )


GOOD_MORE = """
calls = []

@hookimpl
def rlinf_action_processors():
    return [ActionProcessorSpec(env_type="good_env", model_type="*", function="good_code:process")]

@hookimpl
def rlinf_step_ended(step):
    calls.append(step)
"""
GOOD_CODE = """
from pydantic import BaseModel, ConfigDict, Field

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = Field(default=8, description="Width of the hidden layer.")

def build(cfg, torch_dtype):
    return ("built", cfg, torch_dtype)

def process(actions, **context):
    return actions
"""
BROKEN = "def start():\n    raise RuntimeError('the lights are out')\n\nstart()\n"
ENV = """
from rlinf.plugins import EnvSpec, hookimpl

@hookimpl
def rlinf_env_spec():
    return EnvSpec(env_type="good_env", factory="good_env_code:make")
"""

GOOD = Source(
    name="rlinf-plugin-good",
    version="1.2",
    modules={
        "good_plugin": spec_module(fields=", config_schema='good_code:Options'", more=GOOD_MORE),
        "good_code": GOOD_CODE,
    },
    models={"good_model": "good_plugin", "good_twin": "good_plugin"},
)
GOOD_ENV = Source(
    name="rlinf-plugin-good-env",
    modules={"good_env_plugin": ENV, "good_env_code": "def make(config):\n    return config\n"},
    envs={"good_env": "good_env_plugin"},
)
BROKEN_SOURCES = (
    Source(
        name="rlinf-plugin-broken",
        version="0.3",
        modules={"broken_plugin": BROKEN},
        models={"broken": "broken_plugin"},
    ),
    Source(
        name="rlinf-plugin-needy",
        version="0.4",
        modules={"needy_plugin": "import a_package_that_nobody_has\n"},
        models={"needy": "needy_plugin"},
    ),
)
ODD = Source(
    name="rlinf-plugin-odd",
    version="0.1",
    modules={
        "odd_hook": spec_module(more="@hookimpl\ndef rlinf_step_end(step):\n    pass\n"),
        "odd_argument": spec_module(more="@hookimpl\ndef rlinf_step_ended(stepp):\n    pass\n"),
        "odd_wrapper": spec_module(more="@hookimpl(wrapper=True)\ndef rlinf_step_ended(step):\n    pass\n"),
        "odd_unmarked": spec_module(more="def rlinf_step_ended(step):\n    pass\n"),
        "odd_nothing": "",
        "odd_new": spec_module(fields=", api_version=2"),
        "odd_old": spec_module(fields=", api_version=0"),
        "odd_lost": spec_module(builder="lost_code.model:build"),
        "odd_typo": spec_module(builder="odd_code:biuld"),
        "odd_fails": spec_module(builder="odd_failing_code:build"),
        "odd_raises": spec_module(builder="no target"),
        "odd_code": "def build(cfg, torch_dtype):\n    return 1\n",
        "odd_failing_code": "1 / 0\n",
        "odd_exit": "raise SystemExit(3)\n",
    },
    models={
        f"odd_{name}": f"odd_{name}"
        for name in (
            *("hook", "argument", "wrapper", "unmarked", "nothing", "new", "old"),
            *("lost", "typo", "fails", "raises", "exit"),
        )
    }
    | {"odd_value": "odd_code:build"},
)
RIVAL = Source(
    name="rlinf-plugin-rival",
    version="3.0",
    modules={
        "rival_plugin": spec_module(builder="rival_code:build"),
        "rival_code": "def build(cfg, torch_dtype): 0\n",
    },
    models={"good_model": "rival_plugin"},
)
GOOD_OLD = Source(
    name="rlinf-plugin-good",
    version="1.0",
    modules={"good_plugin": spec_module(), "good_code": GOOD_CODE},
    models={"good_model": "good_plugin"},
)
NAMESAKE = Source(
    name="rlinf-plugin-namesake",
    modules={"good_plugin": spec_module(builder="namesake_code:build")},
    models={"namesake": "good_plugin"},
)
GOOD_STALE = Source(name="rlinf-plugin-good", version="0.9", modules={"good_start": ""})


@dataclass(frozen=True)
class Shop:
    wheels: Path
    environment: Environment


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One environment with all plugins that do not stand in each other's way."""
    folder = tmp_path_factory.mktemp("plugins")
    good = (GOOD, GOOD_ENV, *BROKEN_SOURCES, ODD)
    wheels = build(folder, (*good, RIVAL, NAMESAKE, GOOD_OLD, GOOD_STALE))
    return Shop(wheels, Environment(folder / "env", *(source.wheel(wheels) for source in good)))


def small(shop: Shop, folder: Path, *sources: Source) -> Environment:
    return Environment(folder / "env", *(source.wheel(shop.wheels) for source in sources))


def widest(text: str, folder: Path) -> int:
    """Columns of the widest line; a path below `folder` cannot be broken and does not count."""
    return max(len(line) for line in text.splitlines() if str(folder) not in line)


def test_look_up_imports_that_plugin_only(shop: Shop) -> None:
    found = shop.environment.outcome(
        "host = rp.get_host()\nspec = host.model_spec('good_model')\n"
        "build = host.resolve(spec, 'builder'); value = [spec.builder, build(1, 2), list(host.env_types())]"
    )
    assert found.error is None
    assert found.value[:2] == ["good_code:build", ["built", 1, 2]] and "good_env" in found.value[2]
    assert not found.loaded & {"good_env_plugin", "broken_plugin", "needy_plugin", "odd_code", "torch", "ray"}
    assert found.warnings == ()


def test_01_broken_plugin_not_asked_for_costs_one_line(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD, *BROKEN_SOURCES)
    found = environment.outcome(
        "rp.get_host().plan('good_model')\nvalue = rp.get_host().plan('good_model').names('rlinf.models')"
    )
    assert found.value == ["good_model"]
    about = [line for line in found.warnings if "needy" in line]
    assert (
        len(about) == 1 and "a_package_that_nobody_has" in about[0] and "rlinf-plugin-needy 0.4" in about[0]
    )
    assert not found.loaded & {"broken_plugin", "needy_plugin"}


def test_02_broken_plugin_asked_for_shows_its_traceback(shop: Shop) -> None:
    found = shop.environment.outcome("rp.get_host().model_spec('broken')")
    assert found.error == "PluginLoadError"
    assert "rlinf-plugin-broken 0.3" in found.text and "RuntimeError: the lights are out" in found.text
    file = shop.environment.packages / "broken_plugin.py"
    assert f'File "{file}", line 2, in start' in found.text and f"file: {file}" in found.text
    assert "importlib" not in found.text and "rlinf/plugins" not in found.text
    assert "SystemExit: 3" in shop.environment.outcome("rp.get_host().model_spec('odd_exit')").text


def test_03_two_distributions_with_one_name(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD, RIVAL)
    found = environment.outcome("rp.get_host().model_spec('good_model')")
    assert found.error == "PluginConflictError"
    for part in (
        "rlinf-plugin-good 1.2",
        "rlinf-plugin-rival 3.0",
        "plugins.override",
        str(environment.packages),
    ):
        assert part in found.text
    assert not found.loaded & {"good_plugin", "rival_plugin"}
    decided = environment.outcome(
        "host = rp.configure_host(rp.PluginPolicy(override={'good_model': 'RLinf_plugin.rival'}))\n"
        "plan = host.plan('good_model'); entry = plan.entries[-1]\n"
        "value = [host.model_spec('good_model').builder, entry.distribution, entry.override]"
    )
    assert decided.value == [
        "rival_code:build",
        "rlinf-plugin-rival",
        "plugins.override, instead of rlinf-plugin-good 1.2",
    ]
    assert "good_plugin" not in decided.loaded
    nobody = environment.outcome(
        "policy = rp.PluginPolicy(override={'good_twin': 'rlinf-plugin-none'})\n"
        "rp.configure_host(policy).model_spec('good_twin')"
    )
    assert nobody.error == "PluginConflictError" and "'rlinf-plugin-none'" in nobody.text
    # Another name of the same distribution is not touched by the conflict.
    assert (
        environment.outcome("value = rp.get_host().model_spec('good_twin').builder").value
        == "good_code:build"
    )
    listed = json.loads(environment.rlinf("plugins", "list", "--json").stdout)["plugins"]
    states = {(row["name"], row["distribution"]): row["state"] for row in listed}
    assert (
        states["good_model", "rlinf-plugin-good"] == states["good_model", "rlinf-plugin-rival"] == "conflict"
    )
    assert states["good_twin", "rlinf-plugin-good"] == "ok"


def test_04_unknown_name_lists_known_ones(shop: Shop) -> None:
    found = shop.environment.outcome("rp.get_host().model_spec('good_modle')")
    assert found.error == "UnknownPluginError"
    assert (
        "Did you mean 'good_model'?" in found.text and "good_twin" in found.text and "tiny_vla" in found.text
    )
    # Our own plugins are installed where this runs: another name takes the place of theirs in the table.
    known = shop.environment.outcome(
        "from rlinf.plugins import host\n"
        "assert host.PIP_INSTALL['openpi'] == 'rlinf-plugin-openpi'\n"
        "host.PIP_INSTALL['far_model'] = 'rlinf-plugin-far'\n"
        "rp.get_host().model_spec('far_model')"
    )
    assert "pip install rlinf-plugin-far" in known.text
    assert shop.environment.outcome("rp.get_host().env_spec('tabeltop')").text.count("'tabletop'") == 1


@pytest.mark.parametrize(
    ("name", "version", "advice"),
    [("odd_new", 2, "upgrade rlinf-core"), ("odd_old", 0, "upgrade rlinf-plugin-odd")],
)
def test_05_api_version(shop: Shop, name: str, version: int, advice: str) -> None:
    found = shop.environment.outcome(f"rp.get_host().model_spec({name!r})")
    assert found.error == "ApiVersionError"
    assert f"version {version} of the plugin API" in found.text and "has version 1" in found.text
    assert advice in found.text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "odd_hook",
            ("no hook 'rlinf_step_end'", "Did you mean 'rlinf_step_ended'?", "odd_hook.rlinf_step_end"),
        ),
        ("odd_argument", ("no argument 'stepp'", "Did you mean 'step'?", "step, metrics")),
        ("odd_unmarked", ("rlinf_step_ended lacks the decorator",)),
        ("odd_wrapper", ("wrapper=True", "rlinf_step_ended")),
        ("odd_nothing", ("implements no rlinf_model_spec",)),
    ],
)
def test_06_hooks_that_do_not_exist(shop: Shop, name: str, parts: tuple[str, ...]) -> None:
    found = shop.environment.outcome(f"rp.get_host().model_spec({name!r})")
    assert found.error == "HookError"
    checked = shop.environment.rlinf("plugins", "check", name)
    assert checked.returncode == 1
    flat = " ".join(checked.stdout.split())
    for part in (*parts, "rlinf-plugin-odd 0.1"):
        assert part in found.text and part in flat


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("odd_lost", ("'lost_code.model:build' does not resolve", "no module 'lost_code'")),
        ("odd_typo", ("no attribute 'biuld'", "Did you mean 'build'?", "odd_code.py")),
        ("odd_fails", ("ZeroDivisionError", "odd_failing_code.py", "line 1")),
    ],
)
def test_07_targets_that_do_not_resolve(shop: Shop, name: str, parts: tuple[str, ...]) -> None:
    found = shop.environment.outcome(
        f"host = rp.get_host(); spec = host.model_spec({name!r}); host.resolve(spec, 'builder')"
    )
    assert found.error == "PluginLoadError"
    for part in (*parts, "ModelSpec.builder", f"{name!r}", "rlinf-plugin-odd 0.1"):
        assert part in found.text
    checked = shop.environment.rlinf("plugins", "check", name)
    assert checked.returncode == 1 and parts[0] in " ".join(checked.stdout.split())


def test_07_values_that_cannot_be_targets(shop: Shop) -> None:
    found = shop.environment.outcome("rp.get_host().model_spec('odd_raises')")
    assert found.error == "PluginLoadError" and "expected 'module:attr'" in found.text
    found = shop.environment.outcome("rp.get_host().model_spec('odd_value')")
    assert (
        found.error == "PluginError"
        and "'odd_code:build'" in found.text
        and "module's dotted name" in found.text
    )


def test_08_allow_and_deny(shop: Shop) -> None:
    denied = shop.environment.outcome(
        "rp.configure_host(rp.PluginPolicy(deny=('RLinf.Plugin_Good',))).model_spec('good_model')"
    )
    assert denied.error == "UnknownPluginError" and "denied by plugins.deny" in denied.text
    assert "good_plugin" not in denied.loaded
    code = "value = rp.configure_host(rp.PluginPolicy(allow={allow!r})).model_types()"
    allowed = shop.environment.outcome(code.format(allow=("rlinf-plugin-good",))).value
    builtin = {"audio_language", "causal_lm", "cnn_policy", "generative_reward_vl", "mlp_policy", "tiny_vla"}
    builtin |= {"scalar_reward", "scalar_reward_al", "scalar_reward_vl", "vision_language"}
    assert allowed == sorted(builtin | {"good_model", "good_twin"})
    refused = shop.environment.outcome(
        "rp.configure_host(rp.PluginPolicy(allow=())).model_spec('good_model')"
    )
    assert refused.error == "UnknownPluginError" and "not in plugins.allow" in refused.text
    listed = shop.environment.rlinf("plugins", "list", "--json", "--deny", "rlinf-plugin-odd").stdout
    states = {row["name"]: row["state"] for row in json.loads(listed)["plugins"]}
    assert states["odd_new"] == "denied" and states["good_model"] == "ok"


def test_08_denial_decides_a_conflict(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD, RIVAL)
    found = environment.outcome(
        "host = rp.configure_host(rp.PluginPolicy(deny=('rlinf-plugin-good',)))\n"
        "value = host.model_spec('good_model').builder"
    )
    assert found.value == "rival_code:build"


def test_09_metadata_earlier_on_the_path_shadows(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD)
    stale = install_to_folder(tmp_path / "stale", GOOD_STALE.wheel(shop.wheels))
    found = environment.outcome("rp.get_host().model_spec('good_model')", path=[stale])
    assert found.error == "UnknownPluginError"
    assert (
        "shadowed" in found.text and "0.9" in found.text and "1.2" in found.text and str(stale) in found.text
    )
    listed = environment.rlinf("plugins", "list", path=[stale])
    assert listed.returncode == 0 and "installed more than once" in " ".join(listed.stdout.split())
    assert widest(listed.stdout, tmp_path) <= 80
    older = install_to_folder(tmp_path / "older", GOOD_OLD.wheel(shop.wheels))
    found = environment.outcome(
        "host = rp.get_host(); value = [host.problems(), host.plan('good_model').entries[-1].version]",
        path=[older],
    )
    problems, version = found.value
    assert version == "1.0" and len(problems) == 1 and "hides its good_twin" in problems[0]
    assert len([line for line in found.warnings if "installed more than once" in line]) == 1


def test_09_two_versions_in_one_folder(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD_OLD)
    info = environment.packages / "rlinf_plugin_good-1.0.dist-info"
    shutil.move(info, tmp_path / info.name)  # an upgrade that lost its uninstall
    environment.install(GOOD.wheel(shop.wheels))
    shutil.move(tmp_path / info.name, info)
    found = environment.outcome(
        "host = rp.get_host(); value = [host.problems(), host.plan('good_model').entries[-1].version]"
    )
    problems, version = found.value
    assert version == "1.2" and len(problems) == 1 and "1.0 at" in problems[0] and str(info) in problems[0]


def test_09_leftovers_and_stray_copies(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD, GOOD_ENV)
    info = environment.packages / "rlinf_plugin_good-1.2.dist-info"
    shutil.copytree(info, environment.packages / "~linf_plugin_good-1.2.dist-info")
    found = environment.outcome(
        "host = rp.get_host(); host.model_spec('good_model'); value = host.problems()"
    )
    assert len(found.value) == 1 and "interrupted uninstall" in found.value[0]
    stray = tmp_path / "stray"
    stray.mkdir()
    shutil.copy(environment.packages / "good_plugin.py", stray)
    found = environment.outcome("rp.get_host().model_spec('good_model')", path=[stray])
    assert found.error == "PluginConflictError"
    assert str(stray / "good_plugin.py") in found.text and "rlinf-plugin-good 1.2" in found.text
    (environment.packages / "good_plugin.py").unlink()  # the metadata of something that is gone
    found = environment.outcome("rp.get_host().plan(env_type='good_env')")
    assert len([line for line in found.warnings if "no module 'good_plugin'" in line]) == 1
    assert environment.outcome("rp.get_host().model_spec('good_model')").error == "PluginLoadError"


def test_10_found_twice_registers_once(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path, GOOD)
    link = tmp_path / "link"
    link.symlink_to(environment.packages, target_is_directory=True)
    found = environment.outcome(
        "host = rp.get_host()\n"
        "specs = [host.model_spec(name) for name in ('good_model', 'good_twin', 'good_model')]\n"
        "host.hook.rlinf_step_ended(step=7, metrics={})\n"
        "import good_plugin\n"
        "rows = [row for row in host.discover() if row.name.startswith('good')]\n"
        "value = [good_plugin.calls, len(rows), len(host.manager.get_plugins()), host.problems(),\n"
        "         len(host.action_processors('good_env', 'good_model'))]",
        path=[link, environment.packages],
    )
    assert found.value == [[7], 2, 1, [], 1]


def test_10_one_module_name_in_two_distributions(shop: Shop, tmp_path: Path) -> None:
    """Python can import one of them only; the other's names must not be served by it."""
    environment = small(shop, tmp_path, GOOD)
    twin = install_to_folder(tmp_path / "twin", NAMESAKE.wheel(shop.wheels))
    found = environment.outcome(
        "host = rp.get_host()\nvalue = host.model_spec('namesake').builder\nhost.model_spec('good_model')",
        path=[twin],
    )
    assert found.value == "namesake_code:build"
    assert found.error == "PluginConflictError" and str(twin / "good_plugin.py") in found.text


def test_a_plugin_installed_meanwhile_is_found(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path)
    wheel = GOOD.wheel(shop.wheels)
    found = environment.outcome(
        "import plugin_kit, pathlib\nbefore = 'good_model' in rp.get_host().model_types()\n"
        f"plugin_kit.install_to_folder(pathlib.Path({str(environment.packages)!r}), {str(wheel)!r})\n"
        "value = [before, rp.get_host().model_spec('good_model').builder]",
        path=[Path(__file__).parent],
    )
    assert found.value == [False, "good_code:build"]


def test_10_editable_install(shop: Shop, tmp_path: Path) -> None:
    environment = small(shop, tmp_path)
    root = GOOD.write(tmp_path)
    environment.install_editable(root)
    code = (
        "host = rp.get_host(); entry = host.plan('good_model').entries[-1]\n"
        "value = [entry.version, entry.content_hash, host.problems()]"
    )
    version, first_hash, problems = environment.outcome(code).value
    assert version == "1.2" and problems == []
    with (root / "good_plugin.py").open("a") as stream:
        stream.write("# edited\n")
    assert environment.outcome(code).value[1] != first_hash


REGISTER = """
host = rp.get_host()
def mine(cfg, torch_dtype): return "mine"
def other(cfg, torch_dtype): return "other"
def attempt(*args, **kwargs):
    try:
        host.register_model(*args, **kwargs)
    except rp.PluginError as error:
        return [type(error).__name__, str(error)]
    return "registered"
"""


def test_11_register_model(shop: Shop) -> None:
    found = shop.environment.outcome(
        REGISTER
        + """
first = [attempt("new", mine), attempt("new", mine), attempt("new", other)]
kept = host.model_spec("new").builder is mine
taken = attempt("good_model", mine)
whole = [attempt("bad", mine, lora_targets=("(",)), attempt("bad", mine, lora_target=("a",)),
         attempt("bad", lambda cfg: 0), attempt("bad", "no-target"), "bad" in host.model_types()]
value = [first, kept, taken, whole, "good_plugin" in sys.modules]
"""
    )
    first, kept, taken, whole, imported = found.value
    assert first[:2] == ["registered", "registered"] and first[2][0] == "PluginConflictError" and kept
    assert ":mine" in first[2][1] and ":other" in first[2][1] and "force=True" in first[2][1]
    assert taken[0] == "PluginConflictError" and "rlinf-plugin-good 1.2" in taken[1] and not imported
    assert [problem[0] for problem in whole[:4]] == ["PluginError"] * 4 and whole[4] is False
    assert "lora_targets" in whole[0][1] and "Did you mean 'lora_targets'?" in whole[1][1]
    assert "builder(cfg, torch_dtype)" in whole[2][1]


def test_11_force_is_an_override_that_shows(shop: Shop) -> None:
    found = shop.environment.outcome(
        REGISTER
        + """
host.register_model("good_model", mine, force=True)
row = [row for row in host.discover() if row.name == "good_model"]
entry = [entry for entry in host.plan("good_model").entries if entry.name == "good_model"][0]
value = [host.model_spec("good_model").builder is mine, sorted(r.state for r in row), entry.override,
         entry.distribution]
decided = rp.configure_host(rp.PluginPolicy(override={"good_model": "rlinf-plugin-good"}))
value += [decided.model_spec("good_model").builder, attempt("good_model", mine)]
"""
    )
    assert found.value == [
        True,
        ["forced", "overridden"],
        "force=True, instead of rlinf-plugin-good 1.2",
        "register_model()",
        "good_code:build",
        "registered",
    ]


def test_11_registration_in_the_driver_does_not_reach_others(shop: Shop) -> None:
    plan = shop.environment.outcome(
        REGISTER + "host.register_model('new', mine)\nvalue = host.plan('new').to_json()"
    )
    found = shop.environment.outcome(f"rp.verify_plan(rp.Plan.from_json({plan.value!r}))")
    assert found.error == "PlanMismatchError"
    assert "register_model()" in found.text and "RLINF_EXT_MODULE" in found.text


def test_11_registration_of_what_is_installed_is_a_no_op(shop: Shop) -> None:
    found = shop.environment.outcome(
        "import good_code; host = rp.get_host()\n"
        "host.register_model('good_model', good_code.build)\n"
        "host.register_model('good_model', 'good_code:build')\n"
        "value = [row.state for row in host.discover() if row.name == 'good_model']\n"
        "host.register_model('good_model', 'good_code:process')"
    )
    assert found.value == ["ok"]
    assert found.error == "PluginConflictError" and "good_code:process" in found.text


def test_action_processors_join_by_use_or_by_load(shop: Shop) -> None:
    code = (
        "host = rp.configure_host(rp.PluginPolicy(load={load!r}))\n"
        "value = [[spec.function for spec in host.action_processors(env, model)] for env, model in\n"
        "         [('good_env', 'good_model'), ('good_env', 'not_installed'), ('elsewhere', 'good_model')]]"
    )
    assert shop.environment.outcome(code.format(load=())).value == [["good_code:process"], [], []]
    loaded = shop.environment.outcome(code.format(load=("good_twin",))).value
    assert loaded == [["good_code:process"], ["good_code:process"], []]
    missing = shop.environment.outcome(code.format(load=("good_twn",)))
    assert missing.error == "UnknownPluginError" and "Did you mean 'good_twin'?" in missing.text


def test_list_show_and_check(shop: Shop) -> None:
    listed = shop.environment.rlinf("plugins", "list")
    assert listed.returncode == 0 and widest(listed.stdout, shop.environment.folder) <= 80
    row = next(line.split() for line in listed.stdout.splitlines() if line.startswith("good_model"))
    assert row == ["good_model", "model", "rlinf-plugin-good", "1.2", "ok"]
    shown = shop.environment.rlinf("plugins", "show", "good_model")
    assert shown.returncode == 0
    for part in ("rlinf-plugin-good 1.2", "good_code:build", "width: int = 8", "Width of the hidden layer."):
        assert part in shown.stdout
    checked = shop.environment.rlinf("plugins", "check", "good_model")
    assert checked.returncode == 0 and "ok: good_model" in checked.stdout and " ms)" in checked.stdout
    unknown = shop.environment.rlinf("plugins", "check", "good_modle")
    assert unknown.returncode == 2 and "Did you mean 'good_model'?" in unknown.stderr


def test_list_shows_what_the_extension_module_forces(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "my_extension.py").write_text(
        "from rlinf.plugins import get_host\n"
        "def build(cfg, torch_dtype):\n    return None\n"
        "def register():\n    get_host().register_model('good_model', build, force=True)\n"
    )
    listed = shop.environment.rlinf(
        "plugins", "list", "--json", path=[tmp_path], RLINF_EXT_MODULE="my_extension"
    )
    rows = [row for row in json.loads(listed.stdout)["plugins"] if row["name"] == "good_model"]
    assert sorted(row["state"] for row in rows) == ["forced", "overridden"]
    assert any(str(tmp_path / "my_extension.py") in row["note"] for row in rows)


def test_check_sees_heavy_imports_and_survives_the_plugin(tmp_path: Path) -> None:
    heavy = Source(
        name="rlinf-plugin-heavy",
        modules={
            "heavy_plugin": "import pandas\n" + spec_module(builder="heavy_plugin:build"),
            "dying_plugin": "import os\nprint('{}')\nos._exit(7)\n",
            "pandas": "",  # stands for the real one, which takes its time
        },
        models={"heavy": "heavy_plugin", "dying": "dying_plugin"},
    )
    environment = Environment(tmp_path / "env", heavy.wheel(build(tmp_path, [heavy])))
    reports = {}
    for name in heavy.models:
        done = environment.rlinf("plugins", "check", name, "--json")
        reports |= {report["module"]: report for report in json.loads(done.stdout)["reports"]}
        assert done.returncode == 1
    assert reports["heavy_plugin"]["heavy"] == ["pandas"] and reports["heavy_plugin"]["import_ms"] > 0
    assert any("has no attribute 'build'" in error for error in reports["heavy_plugin"]["errors"])
    assert "status 7" in reports["dying_plugin"]["errors"][0]
