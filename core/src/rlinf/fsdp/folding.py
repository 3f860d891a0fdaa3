"""Module paths that differ by running numbers as one line: `layers.0`, `layers.1`, ... -> `layers.0-31`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

#: Parts of a path (numbers folded so far as ranges), key, the paths themselves.
Entry = tuple[tuple[str, ...], Hashable, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Paths that are alike."""

    #: `blocks.0-3,5.attn`; stands for exactly `names`.
    label: str
    names: tuple[str, ...]


def fold(paths: Iterable[tuple[str, Hashable]]) -> list[Folded]:
    """Group paths of equal `key` ((path, key) pairs) that differ in numbers only, in order of appearance.

    Numbers at several places are folded too if all combinations are there: `layers.0-1.experts.0-7`.
    """
    entries: list[Entry] = [(tuple(path.split(".")), key, (path,)) for path, key in paths]
    deepest = max((len(parts) for parts, _, _ in entries), default=0)
    for place in reversed(range(deepest)):
        groups: dict[Hashable, list[Entry]] = {}
        for entry in entries:
            parts, key, _ = entry
            folds = place < len(parts) and parts[place].isdigit()
            alike: Hashable = (parts[:place], parts[place + 1 :], key) if folds else (parts, key)
            groups.setdefault((folds, alike), []).append(entry)
        entries = [_merge(group, place) if len(group) > 1 else group[0] for group in groups.values()]
    return [Folded(label=".".join(parts), names=names) for parts, _, names in entries]


def _merge(group: list[Entry], place: int) -> Entry:
    parts, key, _ = group[0]
    numbers = _ranges(sorted(int(other[place]) for other, _, _ in group))
    names = tuple(name for _, _, own in group for name in own)
    return (*parts[:place], numbers, *parts[place + 1 :]), key, names


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
