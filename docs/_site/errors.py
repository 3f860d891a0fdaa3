"""The page "What happens when": situations with the message that each gives, and all messages of the code.

`tests/integration/test_docs_errors.py` brings about every situation of `CASES` and compares the message.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: A plugin's module; `{spec}` are the arguments of its ModelSpec beside the model_type.
_PLUGIN: Final = """\
from rlinf.plugins import ModelSpec, hookimpl

@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type="mine", {spec})
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A situation: what was done wrong, a command that shows it, and what the message holds."""

    when: str
    command: str
    says: tuple[str, ...]
    remedy: str
    #: {file name: text} in the folder where the command runs.
    files: Mapping[str, str] = field(default_factory=dict)
    #: {distribution: source of its module} of plugins that all offer the model_type `mine`.
    plugins: Mapping[str, str] = field(default_factory=dict)


CASES: Final[dict[str, tuple[Case, ...]]] = {
    "Command line": (
        Case(
            when="a command is misspelt",
            command="rlinf tran",
            says=("unknown command 'tran'; did you mean train?",),
            remedy="type the command that is named",
        ),
        Case(
            when="an option does not exist",
            command="rlinf train --confg my.yaml",
            says=("unrecognized arguments: --confg",),
            remedy="see `rlinf train --help`",
        ),
        Case(
            when="a new plugin's name is taken",
            command="rlinf plugins new tiny_vla --family flow",
            says=("model_type 'tiny_vla' is taken by rlinf-core", "choose another name"),
            remedy="choose another name",
        ),
        Case(
            when="a checkpoint does not exist",
            command="rlinf eval --checkpoint runs/none",
            says=("runs/none",),
            remedy="name a folder `checkpoints/step_N` of a run",
        ),
    ),
    "Configuration": (
        Case(
            when="a configuration does not exist",
            command="rlinf config validate --config tabletop_pp",
            says=("tabletop_pp", "tabletop_ppo"),
            remedy="name a file or a shipped configuration",
        ),
        Case(
            when="a key is misspelt",
            command="rlinf config validate actor.optim.lrr=0.1",
            says=("actor.optim.lrr", "unknown key", "did you mean actor.optim.lr?"),
            remedy="write the key that is named",
        ),
        Case(
            when="a misspelt key in a file",
            command="rlinf config validate --config my.yaml",
            files={"my.yaml": "defaults: [tabletop_ppo]\nenv:\n  num_env: 8\n"},
            says=("env.num_env", "my.yaml:3", "did you mean env.num_envs?"),
            remedy="the file and line say where",
        ),
        Case(
            when="a value has the wrong type",
            command="rlinf config validate actor.optim.lr=fast",
            says=("actor.optim.lr", "expected a number", "got the text 'fast'"),
            remedy="write a value of the type",
        ),
        Case(
            when="a name does not exist",
            command="rlinf config validate algorithm.adv_type=gea",
            says=("algorithm.adv_type", "expected one of gae, grpo, reinforce++", "did you mean gae?"),
            remedy="write one of the names",
        ),
        Case(
            when="batch sizes do not fit",
            command="rlinf config validate actor.global_batch_size=100",
            says=("actor.global_batch_size", "expected a multiple of"),
            remedy="take one of the nearest sizes that are named",
        ),
        Case(
            when="a key cannot act under the others",
            command="rlinf config validate --config tabletop_grpo algorithm.gae_lambda=0.9",
            says=("algorithm.gae_lambda", "cannot act"),
            remedy="take the key away, or change the one that is named",
        ),
        Case(
            when="a plugin's key is misspelt",
            command="rlinf config validate model.tiny_vla.dimm=32",
            says=("model.tiny_vla.dimm", "did you mean model.tiny_vla.dim?"),
            remedy="`rlinf plugins show tiny_vla` lists the keys",
        ),
        Case(
            when="a file is not YAML",
            command="rlinf config validate --config my.yaml",
            files={"my.yaml": "runner: [1\nenv: 2\n"},
            says=("my.yaml",),
            remedy="the line and column say where",
        ),
        Case(
            when="the run folder is in use",
            command="rlinf train runner.output_dir=full",
            files={"full/summary.json": "{}"},
            says=("full", "is not empty"),
            remedy="another folder, or `runner.resume=true`",
        ),
    ),
    "Plugins": (
        Case(
            when="nobody offers the model type",
            command="rlinf config validate model.model_type=tiny_vl",
            says=("unknown model_type 'tiny_vl'", "Did you mean 'tiny_vla'?", "Known:"),
            remedy="install the plugin, or write the name that is known",
        ),
        Case(
            when="the plugin is denied",
            command="rlinf config validate model.model_type=mine plugins.deny=[rlinf-plugin-a]",
            plugins={"rlinf-plugin-a": _PLUGIN.format(spec='builder="m:build"')},
            says=("unknown model_type 'mine'", "rlinf-plugin-a", "denied"),
            remedy="change `plugins.allow` or `plugins.deny`",
        ),
        Case(
            when="two distributions offer one name",
            command="rlinf config validate model.model_type=mine",
            plugins={
                "rlinf-plugin-a": _PLUGIN.format(spec='builder="m:build"'),
                "rlinf-plugin-b": _PLUGIN.format(spec='builder="n:build"'),
            },
            says=("'mine' is offered more than once", "rlinf-plugin-a", "rlinf-plugin-b", "plugins.override"),
            remedy="uninstall one, or decide by `plugins.override`",
        ),
        Case(
            when="the plugin's module fails to import",
            command="rlinf config validate model.model_type=mine",
            plugins={"rlinf-plugin-a": "import a_package_that_is_missing\n"},
            says=("rlinf-plugin-a 1.0", "No module named 'a_package_that_is_missing'", "Traceback (most"),
            remedy="install what is missing; the traceback is the plugin's own",
        ),
        Case(
            when="the hook lacks its decorator",
            command="rlinf config validate model.model_type=mine",
            plugins={"rlinf-plugin-a": "def rlinf_model_spec():\n    return None\n"},
            says=("rlinf_model_spec lacks the decorator @rlinf.plugins.hookimpl", "rlinf-plugin-a"),
            remedy="decorate the function with `hookimpl`",
        ),
        Case(
            when="a hook asks for an argument that does not exist",
            command="rlinf config validate model.model_type=mine",
            plugins={
                "rlinf-plugin-a": "from rlinf.plugins import hookimpl\n\n@hookimpl\n"
                "def rlinf_model_spec(name):\n    return None\n"
            },
            says=("rlinf-plugin-a", "rlinf_model_spec", "name"),
            remedy="use the arguments of the [specification](hooks.md)",
        ),
        Case(
            when="a spec names no function",
            command="rlinf config validate model.model_type=mine",
            plugins={"rlinf-plugin-a": _PLUGIN.format(spec='builder="my_package.build"')},
            says=("ModelSpec.builder: expected 'module:attr'", "'my_package.build'"),
            remedy="write `my_package:build`",
        ),
        Case(
            when="the plugin was written for another version of the API",
            command="rlinf config validate model.model_type=mine",
            plugins={"rlinf-plugin-a": _PLUGIN.format(spec='builder="m:build", api_version=99')},
            says=("rlinf-plugin-a", "99"),
            remedy="install the version of the plugin, or of rlinf-core, that fits",
        ),
        Case(
            when="the builder's module does not exist",
            command="rlinf fsdp-plan model.model_type=mine",
            plugins={"rlinf-plugin-a": _PLUGIN.format(spec='builder="no_such_module:build"')},
            says=("no_such_module", "rlinf-plugin-a"),
            remedy="correct the name in the `ModelSpec`",
        ),
    ),
    "Sharding": (
        Case(
            when="a rule of a wrap policy matches nothing",
            command="rlinf fsdp-plan "
            "actor.fsdp_config.wrap_policy.transformer_layer_cls_to_wrap=[TinyVlaBlok]",
            says=("TinyVlaBlok", "matches no module of TinyVla", "Did you mean 'TinyVlaBlock'?"),
            remedy="write the class name that is named",
        ),
    ),
}


def errors_page() -> str:
    """The table of situations, then every message that the code can give."""
    lines = [
        "# What happens when",
        "",
        "What is wrong is found as early as it can be: before Ray starts, as a rule before anything heavy is",
        "imported. A message names the file, the key or the plugin, what was expected, what came, and what",
        "to do. There is no traceback for what can be mended on the command line, in the configuration or by",
        "installing something else, except that of a plugin's own code.",
        "",
    ]
    for section, cases in CASES.items():
        lines += [f"## {section}", "", "| when | for example | the message holds | remedy |"]
        lines.append("| --- | --- | --- | --- |")
        for case in cases:
            says = "<br>".join(f"`{_cell(text)}`" for text in case.says)
            lines.append(f"| {case.when} | `{_cell(case.command)}` | {says} | {case.remedy} |")
        lines.append("")
    lines += [
        "## All messages",
        "",
        "Every error that the core raises on purpose, from its source; … stands for names and numbers.",
        "",
    ]
    for module, rows in _messages().items():
        lines += [f"#### {module}", "", "| error | message |", "| --- | --- |"]
        lines += [f"| `{error}` | {_escape(text)} |" for error, text in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escape(text: str) -> str:
    for mark in ("\\", "`", "*", "_", "[", "]", "<", ">", "|", "{", "}"):
        text = text.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}"))
    return text


def _messages() -> dict[str, list[tuple[str, str]]]:
    """{module: [(class, message)]} of every `raise` with a text and every problem that a check yields."""
    import rlinf

    root = Path(rlinf.__file__).parent
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(("rlinf", *path.relative_to(root).with_suffix("").parts))
        if name.startswith(("rlinf.testing", "rlinf.templates")):
            continue
        rows = list(dict.fromkeys(_raised(ast.parse(path.read_text(encoding="utf-8")))))
        if rows:
            found[name] = rows
    return found


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        if isinstance(node, ast.Raise) and call.args and (text := _text(call.args[0])):
            yield call.func.id, text
        elif call.func.id == "Problem":
            message = next((word.value for word in call.keywords if word.arg == "message"), None)
            if message is not None and (text := _text(message)):
                yield "ConfigError", text


def _text(node: ast.expr) -> str:
    """A message's text with … for what is filled in; "" if nothing in it is fixed."""
    if isinstance(node, ast.Constant):
        text = str(node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = _text(node.left) + (_text(node.right) or "…")
    else:
        return ""
    return " ".join(text.split()) if text.strip(" ….") else ""
