"""The plan: which plugins a run resolved to. Names travel, not pickles.

The driver makes the plan and sends it as JSON; every worker resolves the same names itself and refuses to
go on when the result differs; every checkpoint carries the plan that made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from rlinf.plugins.discovery import CORE, ENVS, GROUPS, MODELS, REGISTERED, REWARDS, Discovered, PluginPolicy
from rlinf.plugins.errors import PlanMismatchError, PluginError

if TYPE_CHECKING:
    from rlinf.plugins.host import PluginHost

#: Groups of the entries that are no entry points: the core itself, and the extension module.
CORE_GROUP: Final = "rlinf"
EXTENSION_GROUP: Final = "RLINF_EXT_MODULE"

_BY_USER_CODE = (
    "The run registered it with register_model() in its own process, which does not reach other processes: "
    "give it an entry point, or name the module that registers it in RLINF_EXT_MODULE."
)

#: What is compared between two entries of one name, with the words for it.
_COMPARED = ("distribution", "version", "target", "api_version", "override", "content_hash")


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """One name of the run and what provides it."""

    group: str
    name: str
    #: The plugin's module, or `module:function` of a registered builder.
    target: str
    distribution: str
    version: str
    #: Of the files of the distribution as they lie on disk (see `rlinf.plugins.fingerprint`).
    content_hash: str
    api_version: int
    #: Why this one and not another that offers the name; "" where there is no other.
    override: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All plugins of a run, with the policy under which they were resolved. Equal plans, equal code."""

    entries: tuple[PlanEntry, ...]
    policy: PluginPolicy = field(default_factory=PluginPolicy)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back to an equal plan."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str | Mapping[str, Any]) -> Plan:
        """A plan from `to_json`'s text or from the mapping that it parses to. Errors: `PluginError`."""
        try:
            data = json.loads(text) if isinstance(text, str) else text
            policy = PluginPolicy(**data["policy"])
            entries = tuple(PlanEntry(**entry) for entry in data["entries"])
            return Plan(entries=entries, policy=policy)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PluginError(f"this is no plugin plan ({type(error).__name__}: {error})") from None

    def names(self, group: str) -> tuple[str, ...]:
        """The names of a group that the plan holds."""
        return tuple(entry.name for entry in self.entries if entry.group == group)

    def differences(self, other: Plan) -> list[str]:
        """What is otherwise in `other`, one line per difference; empty if the plans are equal."""
        return [f"{what}: {mine} != {theirs}" for what, mine, theirs in self.rows_against(other)]

    def rows_against(self, other: Plan, failures: Mapping[tuple[str, str], str] | None = None) -> list[Row]:
        """(what, in this plan, in the other) per difference; `failures` says why `other` lacks an entry."""
        rows: list[Row] = []
        if self.policy != other.policy:
            rows += [
                (f"plugins.{name}", str(getattr(self.policy, name)), str(getattr(other.policy, name)))
                for name in ("allow", "deny", "override", "load")
                if getattr(self.policy, name) != getattr(other.policy, name)
            ]
        mine = {(entry.group, entry.name): entry for entry in self.entries}
        theirs = {(entry.group, entry.name): entry for entry in other.entries}
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            what = f"{key[0]} {key[1]}"
            if key not in theirs:
                rows.append((what, _label(mine[key]), (failures or {}).get(key, "(absent)")))
            elif key not in mine:
                rows.append((what, "(absent)", _label(theirs[key])))
            else:
                rows += _compare(what, mine[key], theirs[key])
        return rows


Row = tuple[str, str, str]


def _label(entry: PlanEntry) -> str:
    return f"{entry.distribution} {entry.version}".rstrip()


def _compare(what: str, mine: PlanEntry, theirs: PlanEntry) -> Iterable[Row]:
    for name in _COMPARED:
        one, other = getattr(mine, name), getattr(theirs, name)
        if one == other:
            continue
        if name == "content_hash":
            one, other = one[:12], other[:12]
        yield f"{what} {name.replace('_', ' ')}", str(one) or "(none)", str(other) or "(none)"


def make_plan(
    host: PluginHost,
    models: Iterable[str],
    envs: Iterable[str],
    rewards: Iterable[str],
    load: Iterable[str],
) -> Plan:
    """See `PluginHost.plan`."""
    wanted = [host.select(MODELS, name) for name in models]
    wanted += [host.select(ENVS, name) for name in envs]
    wanted += [host.select(REWARDS, name) for name in rewards]
    load = tuple(dict.fromkeys(load))
    wanted += [row for name in load for row in host.select_any(name)]
    entries = [entry_of(host, row) for row in dict.fromkeys(wanted)]
    warn_unused(host, {(row.path, row.target) for row in wanted})
    policy = host.policy
    if load != policy.load:
        policy = PluginPolicy(allow=policy.allow, deny=policy.deny, override=policy.override, load=load)
    return _finish(entries, policy)


def _finish(entries: list[PlanEntry], policy: PluginPolicy) -> Plan:
    from rlinf.plugins.extension import loaded_extensions

    entries = [_core_entry(), *entries, *(_extension_entry(*item) for item in loaded_extensions().items())]
    entries.sort(key=lambda entry: (entry.group, entry.name))
    return Plan(entries=tuple(entries), policy=policy)


def entry_of(host: PluginHost, row: Discovered) -> PlanEntry:
    """The plan's entry for a name; imports the module behind it and checks its spec."""
    from rlinf.plugins.fingerprint import content_hash, hash_files

    api_version = host.spec_of(row.group, row.name).api_version
    registered = row.state in ("registered", "forced")
    return PlanEntry(
        group=row.group,
        name=row.name,
        target=row.target,
        distribution=row.distribution,
        version=row.version,
        content_hash=hash_files({row.name: row.path}) if registered else content_hash(row),
        api_version=api_version,
        override=_override_of(host, row),
    )


def _override_of(host: PluginHost, row: Discovered) -> str:
    """Without paths: they differ between machines on which all is well."""
    losers = [
        f"{other.distribution} {other.version}".rstrip()
        for other in host.discover()
        if (other.group, other.name) == (row.group, row.name) and other.state == "overridden"
    ]
    why = "force=True" if row.state == "forced" else "plugins.override"
    return f"{why}, instead of {', '.join(sorted(losers))}" if losers else ""


def _core_entry() -> PlanEntry:
    from rlinf.plugins.fingerprint import core_hash, core_version
    from rlinf.plugins.specs import API_VERSION

    return PlanEntry(
        group=CORE_GROUP,
        name="core",
        target="rlinf",
        distribution=CORE,
        version=core_version(),
        content_hash=core_hash(),
        api_version=API_VERSION,
    )


def _extension_entry(name: str, file: str) -> PlanEntry:
    from rlinf.plugins.fingerprint import hash_files
    from rlinf.plugins.specs import API_VERSION

    return PlanEntry(
        group=EXTENSION_GROUP,
        name=name,
        target=name,
        distribution="extension module",
        version="",
        content_hash=hash_files({name: file}),
        api_version=API_VERSION,
    )


def warn_unused(host: PluginHost, used: set[tuple[str, str]]) -> None:
    """One warning line for each problem of the installed metadata, and for each module (other than those
    `used`, as (path, target)) that is visibly broken but that the run does not ask for."""
    from rlinf.plugins.probe import probe

    for problem in host.problems():
        host.warn(problem)
    seen = set(used)
    for row in host.discover():
        if row.state != "ok" or (row.path, row.target) in seen:
            continue
        seen.add((row.path, row.target))
        if fault := probe(row.target):
            host.warn(f"plugin {row.name!r} from {row.label} is broken and not used: {fault}")


def verify_plan(plan: Plan, groups: Sequence[str] = GROUPS) -> Plan:
    """Resolve the plan's names in this process and compare. Takes over the plan's policy and loads its
    extension module, so a worker calls this one function before it does anything else.

    groups: whose names this process needs; the plan's others are left out. Returns the plan as resolved here.

    Errors: `PlanMismatchError` with a table of the differences, before anything is built.
    """
    here, rows = resolve_here(plan, groups)
    if rows:
        raise PlanMismatchError(_table(rows))
    return here


def resolve_here(plan: Plan, groups: Sequence[str] = GROUPS) -> tuple[Plan, list[Row]]:
    """As `verify_plan`, and returns the differences as well: (what, in the plan, in this process)."""
    from rlinf.plugins.extension import load_ext_module
    from rlinf.plugins.host import configure_host

    host = configure_host(plan.policy)
    failures: dict[tuple[str, str], str] = {}
    for name in plan.names(EXTENSION_GROUP):
        try:
            load_ext_module(name)
        except PluginError as error:
            failures[EXTENSION_GROUP, name] = str(error)
    others = [group for group in GROUPS if group not in groups]
    needed = replace(plan, entries=tuple(entry for entry in plan.entries if entry.group not in others))
    entries: list[PlanEntry] = []
    for planned in needed.entries:
        if planned.group not in GROUPS:
            continue
        try:
            entries.append(entry_of(host, host.select(planned.group, planned.name)))
        except PluginError as error:
            advice = f"\n{_BY_USER_CODE}" if planned.distribution == REGISTERED else ""
            failures[planned.group, planned.name] = f"{error}{advice}"
    here = _finish(entries, plan.policy)
    return here, needed.rows_against(here, failures)


def _table(rows: list[Row]) -> str:
    import platform
    import sys

    lines = [
        "this process does not have the plugins of the run's plan; nothing was started here.",
        f"host {platform.node()}, {sys.executable}",
    ]
    details: list[str] = []
    cells = [("what", "plan", "here")]
    for what, planned, here in rows:
        first, _, rest = here.partition("\n")
        if rest or len(first) > 40:
            details.append(f"{what}:\n  " + here.replace("\n", "\n  "))
            first = first if len(first) <= 40 else first[:37] + "..."
        cells.append((what, planned, first))
    widths = [max(len(row[column]) for row in cells) for column in range(2)]
    lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in cells]
    lines.append("Install the same distributions here (or in the Ray `runtime_env`), then start again.")
    return "\n".join([*lines, *details])
