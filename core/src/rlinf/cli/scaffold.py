"""A new plugin's files from the templates in `rlinf/templates/plugin`; nothing here asks or prints."""

from __future__ import annotations

import keyword
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlinf.cli.common import UsageError

#: Folders below it hold the files of all families, of several, or of one; a later folder's file wins.
TEMPLATES: Final = Path(__file__).parents[1] / "templates" / "plugin"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
#: One step of PPO without a warm start: to see that a new model trains.
QUICK: Final = (
    "sft=null",
    "runner.max_steps=1",
    "env.num_envs=8",
    "env.steps_per_rollout=8",
    "env.eval.num_episodes=8",
    "actor.micro_batch_size=4",
    "actor.global_batch_size=16",
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model, and the folders of templates that make a plugin of it."""

    summary: str
    title: str
    folders: tuple[str, ...]


FAMILIES: Final = {
    "tokens": Family(
        summary="autoregressive: every action dimension is a token",
        title="A vision-language-action model of autoregressive action tokens",
        folders=("every", "vla", "tokens"),
    ),
    "flow": Family(
        summary="flow matching or diffusion of an action chunk",
        title="A vision-language-action model by flow matching",
        folders=("every", "vla", "flow"),
    ),
    "gaussian": Family(
        summary="a network with a Gaussian head",
        title="A vision-language-action model with a Gaussian head",
        folders=("every", "vla", "gaussian"),
    ),
    "language": Family(
        summary="a causal language model: prompt and answer are text",
        title="A language model that answers in text",
        folders=("every", "language"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class NewPlugin:
    """What a person decides about a new plugin; the other names follow. Raises UsageError."""

    #: The model_type: lower-case words joined by underscores.
    name: str
    family: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or keyword.iskeyword(self.name):
            asked = re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_0123456789")
            hint = f"; for example {asked}" if _NAME.fullmatch(asked) else ""
            raise UsageError(
                f"{self.name!r} cannot be a model_type: expected lower-case letters and digits, words joined "
                f"by underscores, a letter first{hint}"
            )
        if self.family not in FAMILIES:
            raise UsageError(f"--family: expected one of {', '.join(FAMILIES)}; got {self.family!r}")

    @property
    def distribution(self) -> str:
        return f"rlinf-plugin-{self.name.replace('_', '-')}"

    @property
    def package(self) -> str:
        return f"rlinf_plugin_{self.name}"

    @property
    def cls(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_"))


def render(plugin: NewPlugin) -> dict[str, str]:
    """{path below the plugin's folder: text} of all files."""
    from importlib.metadata import version

    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    family = FAMILIES[plugin.family]
    names = {
        "name": plugin.name,
        "family": plugin.family,
        "distribution": plugin.distribution,
        "package": plugin.package,
        "cls": plugin.cls,
        "title": family.title,
        "quick_command": _quick_command(plugin.name),
        "core_version": version("rlinf-core"),
    }
    files: dict[str, str] = {}
    for folder in family.folders:
        root = TEMPLATES / folder
        for source in sorted(path for path in root.rglob("*.j2") if path.is_file()):
            relative = source.relative_to(root).as_posix().removesuffix(".j2")
            path = environment.from_string(relative).render(names)
            files[path] = environment.from_string(source.read_text(encoding="utf-8")).render(names)
    return files


def write(plugin: NewPlugin, folder: Path) -> list[Path]:
    """Write all files below `folder`, which must be new or empty: all of them or none. Raises UsageError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: choose another with --output")
    files = render(plugin)
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from None
    return [folder / path for path in files]


def shown(folder: Path) -> str:
    """The folder as a person would type it."""
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("..") else relative


def _quick_command(name: str) -> str:
    """The command for the README, folded at 80 columns and indented as Markdown's code blocks are."""
    words = ["rlinf train", f"model.model_type={name}", *QUICK]
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 90:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(f"    {line}" for line in lines)
