"""The console script as a user runs it: in a process of its own, its output in a pipe."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from rlinf.cli import common, main
from rlinf.config.compose import shipped_names

RLINF = Path(sys.executable).with_name("rlinf")
COMMANDS = (*main.COMMANDS, "config show", "config validate", "config schema", "plugins list")


def rlinf(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("RLINF_EXT_MODULE", "COLUMNS")}
    return subprocess.run(
        [RLINF, *args], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=120
    )


def refused(*args: str, **kwargs) -> str:
    """stderr of a command that must end with 2, without a traceback."""
    done = rlinf(*args, **kwargs)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# -- help --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_shows_examples(command):
    done = rlinf(*command.split(), "--help", COLUMNS="80")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"examples:\n  rlinf ", done.stdout) or command == "plugins list"


def test_help_names_every_command():
    out = rlinf("--help").stdout
    assert all(re.search(rf"^    {name} ", out, re.MULTILINE) for name in main.COMMANDS)


def test_help_starts_fast_and_imports_nothing_heavy():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        rlinf("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: other work on the machine does not change it, and start-up waits for nothing.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    code = "import sys; from rlinf.cli.main import build_parser; build_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    heavy = {
        "torch",
        "ray",
        "transformers",
        "pydantic",
        "omegaconf",
        "yaml",
        "numpy",
        "mujoco",
        "pluggy",
        "shtab",
    }
    assert heavy.isdisjoint(loaded)
    assert "rlinf.cli.train" in loaded
    assert min(seconds) < 0.2


def test_help_lists_the_shipped_configurations():
    assert common.shipped() == shipped_names()


def test_version():
    assert rlinf("--version").stdout.startswith("rlinf-core ")


# -- mistakes on the command line --------------------------------------------------------------------
def test_unknown_commands_and_options():
    assert "did you mean train?" in refused("trian")
    assert "commands: train, sft" in refused("xyz")
    assert "--sed" in refused("train", "--sed", "3")
    assert "--checkpoint" in refused("eval")
    assert "required" in refused()


def test_eval_of_a_checkpoint_that_does_not_exist(tmp_path):
    assert "there is no folder nowhere" in refused("eval", "--checkpoint", "nowhere", cwd=tmp_path)
    assert "expected a number >= 1; got 0" in refused(
        "eval", "--checkpoint", str(tmp_path), "--episodes", "0"
    )


def test_sft_without_its_block():
    assert "needs the block sft" in refused("sft", "--config", "tabletop_ppo", "sft=null")


# -- config ------------------------------------------------------------------------------------------
def test_validate():
    done = rlinf("config", "validate", "runner.seed=1", "--config", "tabletop_grpo", "runner.report=false")
    assert (done.returncode, done.stdout) == (0, "OK: tabletop_grpo with 2 overrides\n")


def test_validate_lists_all_problems(tmp_path):
    (tmp_path / "my.yaml").write_text("defaults: [tabletop_ppo]\nactor:\n  optim:\n    lrr: 1\n")
    text = refused("config", "validate", "--config", "my.yaml", "env.num_envs=x", cwd=tmp_path)
    assert "2 problems" in text
    assert "actor.optim.lrr (my.yaml:4)\n  unknown key\n  did you mean actor.optim.lr?" in text
    assert "env.num_envs (override 'env.num_envs=x')\n  expected a whole number; got the text 'x'" in text


def test_show_can_be_loaded_again(tmp_path):
    first = rlinf("config", "show", "--origin", "runner.seed=5").stdout
    assert re.search(r"seed: 5 +# override 'runner.seed=5'", first)
    (tmp_path / "again.yaml").write_text(first)
    again = rlinf("config", "show", "--config", "again.yaml", cwd=tmp_path).stdout
    assert yaml.safe_load(again) == yaml.safe_load(first)
    assert "#" not in again


def test_the_default_configuration_is_named():
    assert "configuration: tabletop_ppo (the default" in rlinf("config", "validate").stderr
    assert rlinf("config", "validate", "--config", "tabletop_ppo").stderr == ""


def test_schema_describes_the_plugins_and_accepts_what_is_shipped():
    schema = json.loads(rlinf("config", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    shown = yaml.safe_load(rlinf("config", "show").stdout)
    jsonschema.validate(shown, schema)
    shown["model"]["tiny_vla"]["depht"] = 3
    with pytest.raises(jsonschema.ValidationError, match="depht"):
        jsonschema.validate(shown, schema)


def test_schema_of_one_plugin():
    done = rlinf("config", "schema", "--model", "tiny_vla", "--env", "metaworld")
    definitions = json.loads(done.stdout)["$defs"]
    assert "tiny_vla" in definitions["ModelConfig"]["properties"]
    assert "mlp_policy" not in definitions["ModelConfig"]["properties"]
    assert "tabletop" not in definitions["EnvConfig"]["properties"]
    assert "Did you mean 'tiny_vla'?" in refused("config", "schema", "--model", "tiny_vlaa")


def test_output_into_a_pipe_that_closes():
    done = subprocess.run(
        ["bash", "-c", f"{RLINF} config schema | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "{\n"
    assert "Error" not in done.stderr and "Traceback" not in done.stderr


# -- environment variables ---------------------------------------------------------------------------
def test_the_extension_module_is_announced(tmp_path):
    (tmp_path / "my_ext.py").write_text(
        "def build(cfg, torch_dtype): ...\n"
        "def register():\n"
        "    from rlinf.plugins import get_host\n"
        "    get_host().register_model('mine', build)\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "RLINF_EXT_MODULE": "my_ext"}
    done = rlinf("config", "validate", "model.model_type=mine", "model.width=3", **env)
    assert done.returncode == 0, done.stderr
    assert f"RLINF_EXT_MODULE: my_ext is loaded from {tmp_path / 'my_ext.py'}" in done.stderr
    text = refused("config", "validate", "model.model_type=mine")
    assert "unknown model_type 'mine'" in text


def test_an_extension_module_that_cannot_be_imported_stops_the_command(tmp_path):
    (tmp_path / "bad_ext.py").write_text("x = 1 / 0\n")
    done = rlinf("config", "validate", PYTHONPATH=str(tmp_path), RLINF_EXT_MODULE="bad_ext")
    assert done.returncode == 2
    assert "RLINF_EXT_MODULE" in done.stderr and "bad_ext.py" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr


# -- train -------------------------------------------------------------------------------------------
def test_dry_run_writes_nothing(tmp_path):
    done = rlinf("train", "runner.output_dir=out", "--dry-run", "runner.max_steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny_vla" in done.stdout and "RL          3 iterations" in done.stdout
    assert list(tmp_path.iterdir()) == []


# -- failures ----------------------------------------------------------------------------------------
def test_a_failed_run_shows_its_traceback_and_exits_1(capsys):
    try:
        raise RuntimeError("the simulator fell over")
    except RuntimeError as error:
        assert common.report_failure(error) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text and "the simulator fell over" in text and "test_cli.py" in text


# -- completion --------------------------------------------------------------------------------------
def test_bash_completion_completes(tmp_path):
    script = tmp_path / "rlinf.bash"
    script.write_text(rlinf("completion", "bash").stdout)
    lines = {}
    for words in ("rlinf tr", "rlinf config sh", "rlinf train --dr"):
        code = (
            f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; "
            f"$(complete -p rlinf | sed -E 's/.*-F ([^ ]+).*/\\1/'); echo ${{COMPREPLY[@]}}"
        )
        lines[words] = subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout.strip()
    assert lines == {"rlinf tr": "train", "rlinf config sh": "show", "rlinf train --dr": "--dry-run"}


def test_zsh_completion_is_a_script_of_zsh(tmp_path):
    text = rlinf("completion", "zsh").stdout
    assert text.startswith("#compdef rlinf") and "--allow-plugin-drift" in text
    if shutil.which("zsh"):
        (tmp_path / "_rlinf").write_text(text)
        assert subprocess.run(["zsh", "-n", tmp_path / "_rlinf"], capture_output=True).returncode == 0
