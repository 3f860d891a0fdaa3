"""Declared requirements against what is installed, pair by pair, from metadata (PEP 508, by `packaging`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from rlinf.plugins.discovery import canonical

#: Name of a distribution -> its lines `Requires-Dist`; empty if it is not installed.
RequiresOf = Callable[[str], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A requirement that what is installed does not meet."""

    #: Who declares it, with version.
    distribution: str
    #: As declared, without its marker: `numpy<2`.
    requirement: str
    #: Name and version of what is installed; "" if it is missing.
    installed: str
    #: Others that declare a requirement on the same distribution which is met: "rlinf-core 0.1.0 (numpy>=1)".
    met: tuple[str, ...] = ()
    #: Why the requirement cannot be judged; "" if it can.
    unreadable: str = ""

    def __str__(self) -> str:
        head = f"{self.distribution} requires {self.requirement}"
        if self.unreadable:
            return f"{head}, which cannot be read: {self.unreadable}"
        text = f"{head}; " + (f"installed is {self.installed}" if self.installed else "it is not installed")
        return text + (f", as {' and '.join(self.met)} wants it" if self.met else "")


@dataclass(frozen=True)
class _Declared:
    by: str
    requirement: Requirement

    def __str__(self) -> str:
        return _shown(self.requirement)


def find_conflicts(
    declaring: Iterable[str], versions: Mapping[str, str], requires_of: RequiresOf
) -> list[Conflict]:
    """Requirements of the distributions `declaring` that are not met.

    Args:
        declaring: canonical names; each is in `versions`.
        versions: canonical name -> version of all that is installed.
        requires_of: see `RequiresOf`. Markers are evaluated for this interpreter. Extras count where a
            requirement asks for them (`rlinf-core[metaworld]`).
    """
    conflicts: list[Conflict] = []
    declared: list[_Declared] = []
    for name in sorted(declaring):
        label = f"{name} {versions[name]}"
        for line, by in _lines(name, (), label, requires_of, frozenset()):
            try:
                requirement = Requirement(line)
            except InvalidRequirement as error:
                reason = str(error).splitlines()[0]
                conflicts.append(Conflict(distribution=by, requirement=line, installed="", unreadable=reason))
                continue
            declared.append(_Declared(by, requirement))
    unmet = [item for item in declared if not _is_met(item.requirement, versions)]
    for item in unmet:
        target = canonical(item.requirement.name)
        found = f"{target} {versions[target]}" if target in versions else ""
        rivals = [
            f"{other.by} ({other})"
            for other in declared
            if found and other not in unmet and canonical(other.requirement.name) == target
            if other.requirement.specifier
        ]
        conflicts.append(
            Conflict(distribution=item.by, requirement=str(item), installed=found, met=tuple(rivals))
        )
    return list(dict.fromkeys(conflicts))


def _lines(
    name: str,
    extras: tuple[str, ...],
    by: str,
    requires_of: RequiresOf,
    visited: frozenset[tuple[str, tuple[str, ...]]],
) -> Iterator[tuple[str, str]]:
    """(requirement that applies here, who declares it); with `extras` only those that the extras add.

    visited: (name, extras) on the way here; extras may name one another, or their own distribution.
    """
    for line in requires_of(name):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            if not extras:
                yield line, by
            continue
        if not _applies(requirement, extras):
            continue
        yield line, by
        asked = (canonical(requirement.name), tuple(sorted(requirement.extras)))
        if asked[1] and asked not in visited:
            through = f"{by} through {asked[0]}[{','.join(asked[1])}]"
            yield from _lines(*asked, through, requires_of, visited | {asked})


def _applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    """Whether the marker holds here; with `extras`: whether it holds because of one of them."""
    marker = requirement.marker
    always = marker is None or marker.evaluate({"extra": ""})
    if not extras or marker is None:
        return always and not extras
    return not always and any(marker.evaluate({"extra": extra}) for extra in extras)


def _is_met(requirement: Requirement, versions: Mapping[str, str]) -> bool:
    version = versions.get(canonical(requirement.name))
    if version is None:
        return False
    try:
        # Whoever installed a pre-release wanted it.
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:  # legacy versions are in no range
        return not requirement.specifier


def _shown(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
