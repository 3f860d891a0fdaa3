"""Reports of `rlinf.cluster.doctor` for people: what is wrong first, then the facts; at most 80 columns
where there are spaces to break at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlinf.cluster.doctor import Report
from rlinf.plugins.text import wrapped


def report_text(report: Report) -> str:
    """One page on this machine."""
    count = len(report["problems"])
    head = f"rlinf doctor: {_plural(count, 'problem')}" if count else "rlinf doctor: nothing is wrong"
    return _paragraphs([[head, *_listed(report["problems"])], *_facts(report)])


def cluster_text(address: str, reports: Mapping[str, Report], differing: Sequence[Mapping[str, Any]]) -> str:
    """Differences between the nodes, problems of each, then the facts of the first that answered."""
    problems = {node: report["problems"] for node, report in reports.items()}
    count = sum(map(len, problems.values()))
    wrong = [_plural(len(differing), "difference"), _plural(count, "problem")]
    head = f"rlinf doctor: {_plural(len(reports), 'node')} at {address}, {' and '.join(wrong)}"
    parts = [[wrapped(head, "  ")]]
    if differing:
        parts.append(["DIFFERENCES BETWEEN NODES"])
        for row in differing:
            parts[-1] += [f"  {row['what']}", *_values(row["values"])]
    for node, listed in problems.items():
        if listed:
            parts.append([f"PROBLEMS ON {node}", *_listed(listed)])
    answered = [node for node, report in reports.items() if "versions" in report]
    if answered:
        others = ", alike on all nodes" if not differing and len(answered) > 1 else ""
        parts.append([f"FACTS OF {answered[0]}{others}"])
        parts += _facts(reports[answered[0]])
    for node in answered[1:]:
        parts.append([f"MACHINE {node}", *_machine(reports[node]["machine"])])
    return _paragraphs(parts)


def _values(values: Mapping[str, str]) -> list[str]:
    """Each value once, with the nodes that have it."""
    nodes: dict[str, list[str]] = {}
    for node, value in values.items():
        nodes.setdefault(value, []).append(node)
    return [wrapped(f"{value}: {', '.join(where)}", " " * 6, "    ") for value, where in nodes.items()]


def _facts(report: Report) -> list[list[str]]:
    versions = dict(report["versions"])
    lines = [f"  {'python':<14}{versions.pop('python')}  {report['executable']}"]
    for name, version in versions.items():
        note = ""
        if name == "torch":
            cuda = report["machine"]["torch_cuda"]
            note = f"  built for CUDA {cuda}" if cuda else "  built without CUDA"
        lines.append(f"  {name:<14}{version}{note}")
    if report["extension"]:
        lines.append(f"  RLINF_EXT_MODULE is {report['extension']!r}")
    parts = [["VERSIONS", *lines], ["PLUGINS", *_plugins(report["plugins"])]]
    editable = [f"  {item['name']} {item['version']}  {item['editable']}" for item in report["editable"]]
    if editable:
        parts.append(["EDITABLE", *editable])
    shadowed = [
        wrapped(f"{item['name']} {item['version']} at {item['path']} by {item['hidden_by']}", "    ", "  ")
        for item in report["shadowed"]
        if not _same_version_below(item)
    ]
    if shadowed:
        parts.append(["SHADOWED", *shadowed])
    parts.append(["MACHINE", *_machine(report["machine"])])
    return parts


def _same_version_below(item: Mapping[str, Any]) -> bool:
    """Whether a lower layer of folders has the same version: nothing that a person must know (Ray's workers
    put Ray's own copy of psutil before the environment's)."""
    hidden, hiding = Path(item["path"]), Path(item["hidden_by"])
    return hidden.parent != hiding.parent and hidden.name == hiding.name


def _plugins(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each distribution brings: kind, distribution, state, names; what there is to say of it below."""
    names: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        kind = row["group"].removeprefix("rlinf.").removesuffix("s")
        distribution = f"{row['distribution']} {row['version']}".rstrip()
        names.setdefault((kind, distribution, row["state"], row["note"] or ""), []).append(row["name"])
    widths = [max(len(key[column]) for key in names) for column in range(3)] if names else []
    lines = []
    for key in sorted(names):
        head = "  " + "".join(f"{text:<{width}}  " for text, width in zip(key, widths))
        lines.append(wrapped(", ".join(names[key]), " " * len(head), head))
        if key[3]:
            lines.append(wrapped(key[3], " " * 6, " " * 6))
    return lines or ["  none"]


def _machine(machine: Mapping[str, Any]) -> list[str]:
    lines = [wrapped(f"GPU           {gpu}", " " * 16, "  ") for gpu in machine["gpus"]]
    lines = lines or [f"  {'GPU':<14}none: {machine['no_gpu']}"]
    free, wanted = machine["shm_free"], machine["shm_wanted"]
    if free is not None:
        text = f"{free / 1e9:.1f} GB free; Ray's object store wants about {wanted / 1e9:.1f} GB"
        lines.append(f"  {'/dev/shm':<14}{text}")
    return lines


def _listed(texts: Iterable[str]) -> list[str]:
    return [wrapped(text, "    ", "  - ") for text in texts]


def _plural(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _paragraphs(parts: Iterable[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(part) for part in parts)
