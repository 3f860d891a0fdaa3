"""Which plugins are installed: read from the metadata of the distributions on `sys.path`, importing none.

`importlib.metadata.entry_points()` keeps only the first distribution of a name and forgets the others,
which is how stale metadata hides a plugin; and importing it costs more than this whole scan. So the scan
lists the `*.dist-info` and `*.egg-info` folders itself and takes name and version from a folder's name (PEP
376, PEP 503, PEP 427).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

#: Entry-point groups; a name is a `model_type`, `env_type` or reward type, its value a light module.
MODELS: Final = "rlinf.models"
ENVS: Final = "rlinf.envs"
REWARDS: Final = "rlinf.rewards"
GROUPS: Final = (MODELS, ENVS, REWARDS)
#: The distribution of this package. Permitted unless it is denied by name.
CORE: Final = "rlinf-core"

#: What stands for the distribution where user code registered a model.
REGISTERED: Final = "register_model()"


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 normalises it: lower case, runs of `-`, `_` and `.` become one `-`."""
    name = name.lower().replace("_", "-").replace(".", "-")
    while "--" in name:
        name = name.replace("--", "-")
    return name


@dataclass(frozen=True, kw_only=True)
class PluginPolicy:
    """What the configuration says about plugins (its block `plugins`); the same in every process of a run."""

    #: Distributions whose plugins may be used; None permits all. `rlinf-core` need not be named.
    allow: tuple[str, ...] | None = None
    #: Distributions whose plugins may not be used.
    deny: tuple[str, ...] = ()
    #: Who wins where several distributions offer one name: {model_type or env_type: distribution}.
    override: Mapping[str, str] = field(default_factory=dict)
    #: Names of further entry points whose 1:N hooks (action processors, observers) join the run.
    load: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        allow = None if self.allow is None else tuple(sorted({canonical(name) for name in self.allow}))
        object.__setattr__(self, "allow", allow)
        object.__setattr__(self, "deny", tuple(sorted({canonical(name) for name in self.deny})))
        override = {name: canonical(winner) for name, winner in sorted(self.override.items())}
        object.__setattr__(self, "override", override)
        object.__setattr__(self, "load", tuple(self.load))

    def refusal(self, distribution: str) -> str:
        """Why plugins of this distribution may not be used, or an empty string."""
        if distribution in self.deny:
            return "denied by plugins.deny"
        if self.allow is not None and distribution not in (*self.allow, CORE):
            return "not in plugins.allow"
        return ""


@dataclass(frozen=True, kw_only=True)
class Discovered:
    """One entry point, or one registration by user code, and how it stands."""

    group: str
    name: str
    #: Dotted name of the plugin's module (of a registration: `module:function` of the builder).
    target: str
    #: Canonical name of the distribution, or `REGISTERED`.
    distribution: str
    version: str = ""
    #: The metadata folder (of a registration: the source file).
    path: str = ""
    #: "ok", "conflict", "overridden", "denied", "shadowed", "broken", "registered" or "forced".
    state: str = "ok"
    #: What there is to say about the state.
    note: str = ""

    @property
    def label(self) -> str:
        """Distribution, version and place, for messages."""
        return f"{self.distribution} {self.version}".rstrip() + f" ({self.path})"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What lies on the path: entries in order of the path, and what is wrong with the metadata."""

    entries: tuple[Discovered, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Metadata:
    """One metadata folder."""

    name: str
    version: str
    path: str
    #: (group, name, value) of the entry points in our groups.
    entries: tuple[tuple[str, str, str], ...]


def scan_key(path: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """What a scan of these folders depends on: their names and times of change, in nanoseconds."""

    def changed(folder: str) -> int:
        try:
            return os.stat(folder or os.curdir).st_mtime_ns
        except OSError:  # not there: Python looks there all the same, in case it comes
            return 0

    return tuple((entry, changed(entry)) for entry in path)


def scan(path: Iterable[str]) -> Scan:
    """Read the entry points of `rlinf.*` groups of all distributions on `path`. Imports nothing, never
    raises for what it finds. Entries that are not folders (zip files) are passed over."""
    problems: list[str] = []
    by_name: dict[str, list[_Metadata]] = {}
    for folder in folders(path):
        here: dict[str, list[_Metadata]] = {}
        for file in listdir(folder):
            if file.endswith((".dist-info", ".egg-info")):
                metadata = _read(os.path.join(folder, file), file, problems)
                here.setdefault(metadata.name, []).append(metadata)
        for name, found in here.items():
            if len(found) > 1:  # two sets of metadata, one set of files: the newest describes them
                found.sort(key=lambda item: (-os.stat(item.path).st_mtime_ns, item.path))
            by_name.setdefault(name, []).extend(found)
    entries: list[Discovered] = []
    for found in by_name.values():
        if any(item.entries for item in found):
            entries += _stack(found, problems)
    return Scan(entries=tuple(entries), problems=tuple(problems))


def folders(path: Iterable[str]) -> Iterable[str]:
    """The entries of a `sys.path` as absolute paths, each once."""
    seen = set()
    for entry in path:
        folder = os.path.abspath(entry or os.curdir)
        real = os.path.realpath(folder)
        if real not in seen:
            seen.add(real)
            yield folder


def listdir(folder: str) -> list[str]:
    """Names in a folder; none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:  # a zip file, a folder that does not exist or may not be read: Python skips it as well
        return []


def _read(path: str, file: str, problems: list[str]) -> _Metadata:
    name, _, version = file.rpartition(".")[0].partition("-")
    entries: tuple[tuple[str, str, str], ...] = ()
    try:
        with open(os.path.join(path, "entry_points.txt"), "rb") as stream:
            content = stream.read()
    except OSError:  # most distributions have none
        content = b""
    if b"rlinf." in content:
        try:
            entries = tuple(_parse(content.decode("utf-8")))
        except ValueError as error:
            problems.append(f"{canonical(name)} {version}: cannot read {path}/entry_points.txt: {error}")
    if entries and file.startswith("~"):
        problems.append(f"{path} is what an interrupted uninstall left behind; it is ignored, remove it")
        entries = ()
    if entries and file.endswith(".dist-info") and not os.path.exists(os.path.join(path, "METADATA")):
        problems.append(f"{path} has no METADATA, it is incomplete or stale; reinstall {canonical(name)}")
    if entries and file.endswith(".egg-info"):
        version = egg_version(path) or version.partition("-py")[0]
    return _Metadata(canonical(name), version, path, entries)


def _parse(text: str) -> Iterable[tuple[str, str, str]]:
    """(group, name, value) of the lines in our groups, by the entry-points specification."""
    group = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            group = line[1:-1].strip()
        elif group in GROUPS:
            name, equals, value = line.partition("=")
            if not equals or not name.strip():
                raise ValueError(f"line {number}: expected 'name = module', got {line!r}")
            yield group, name.strip(), value.strip()


def egg_version(path: str) -> str:
    """The version in the metadata of an `*.egg-info` folder, "" if there is none."""
    try:
        with open(os.path.join(path, "PKG-INFO"), encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("Version:"):
                    return line.partition(":")[2].strip()
    except OSError:  # half-removed metadata: the folder's name is all that is known
        return ""
    return ""


def _stack(found: Sequence[_Metadata], problems: list[str]) -> Iterable[Discovered]:
    """Entries of all metadata of one distribution. Python imports the first on the path; it hides others."""
    first = found[0]
    for item in found:
        state, note = "ok", ""
        if item is not first:
            state, note = "shadowed", f"hidden by {first.name} {first.version} at {first.path}"
            same = set(item.entries) == set(first.entries) and item.version == first.version
            if same and item.path.endswith(".egg-info"):  # what an editable build leaves beside the sources
                continue
            problems.append(_duplicate(first, item))
        for group, name, value in dict.fromkeys(item.entries):
            broken = "" if _is_module(value) else f"the value must be a module's dotted name, got {value!r}"
            yield Discovered(
                group=group,
                name=name,
                target=value,
                distribution=item.name,
                version=item.version,
                path=item.path,
                state="broken" if broken and state == "ok" else state,
                note=note or broken,
            )


def _duplicate(first: _Metadata, other: _Metadata) -> str:
    hidden = sorted({entry[1] for entry in other.entries} - {entry[1] for entry in first.entries})
    consequence = f", which hides its {', '.join(hidden)}" if hidden else ""
    return (
        f"{other.name} is installed more than once: {other.version} at {other.path} is shadowed by "
        f"{first.version} at {first.path}{consequence}; uninstall one of them"
    )


def _is_module(value: str) -> bool:
    return bool(value) and all(part.isidentifier() for part in value.split("."))


def judge(entries: Iterable[Discovered], policy: PluginPolicy) -> tuple[Discovered, ...]:
    """The entries with their states under a policy, sorted by group and name. Pure."""
    groups: dict[tuple[str, str], list[Discovered]] = {}
    for entry in entries:
        refusal = policy.refusal(entry.distribution) if entry.state in ("ok", "broken") else ""
        if refusal:
            entry = replace(entry, state="denied", note=refusal)
        groups.setdefault((entry.group, entry.name), []).append(entry)
    judged: list[Discovered] = []
    for key in sorted(groups):
        judged += _judge_name(groups[key], policy.override.get(key[1]))
    return tuple(judged)


def _judge_name(rivals: list[Discovered], wanted: str | None) -> list[Discovered]:
    """Decide between those that offer one name: the configuration, then `force=True`, else a conflict."""
    live = [entry for entry in rivals if entry.state not in ("denied", "shadowed")]
    if len(live) < 2:
        return rivals
    winners = [entry for entry in live if entry.distribution == wanted]
    why = "plugins.override"
    if not winners:
        winners, why = [entry for entry in live if entry.state == "forced"], "register_model(force=True)"
    decided: dict[int, Discovered] = {}
    for entry in live:
        others = ", ".join(_rival(other, entry) for other in live if other is not entry)
        if len(winners) != 1:
            change = replace(entry, state="conflict", note=f"also from {others}")
        elif entry is winners[0]:
            change = replace(entry, note=entry.note or f"by {why}, instead of {others}")
        else:
            change = replace(entry, state="overridden", note=f"{why}: {winners[0].label}")
        decided[id(entry)] = change
    return [decided.get(id(entry), entry) for entry in rivals]


def _rival(other: Discovered, entry: Discovered) -> str:
    return other.label if other.distribution != entry.distribution else f"its own line {other.target!r}"
