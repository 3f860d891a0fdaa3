"""A `PlanReport` for people: at most 80 columns wide, repeated blocks on one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rlinf.fsdp.estimate import RankBytes
from rlinf.fsdp.folding import Folded, fold
from rlinf.fsdp.report import PlanReport, Tensor
from rlinf.fsdp.wrap import Unit
from rlinf.plugins.text import WIDTH, wrapped

#: Parameters of the root that are shown, largest first.
_SHOWN_OF_ROOT: Final = 8
#: World sizes beside each other.
_COLUMNS: Final = 5
_DTYPES: Final = {"bf16": "bfloat16", "fp32": "float32"}


def plan_text(report: PlanReport) -> str:
    """All of a report in paragraphs: model, units, the root's own parameters, rules, bytes per rank."""
    parts = [_head(report), _units(report), _remainder(report), _rules(report)]
    parts += [
        _ranks(report.estimates[at : at + _COLUMNS]) for at in range(0, len(report.estimates), _COLUMNS)
    ]
    parts.append([wrapped(f"note: {remark}", "  ") for remark in report.remarks])
    parts.append(
        [
            wrapped(
                "Not counted: activations; in backward, a unit gathered ahead of its use and the current "
                "unit's gradients before they are reduced; fragmentation.",
                "",
            )
        ]
    )
    return "\n\n".join("\n".join(part) for part in parts if part)


def size(nbytes: int) -> str:
    """Bytes in binary units: `386.0 MiB`."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"


def count(number: int) -> str:
    """Elements in decimal units: `202.4 M`."""
    value, unit = float(number), ""
    for larger in ("K", "M", "B"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return str(number) if not unit else f"{value:.1f} {unit}"


def _head(report: PlanReport) -> list[str]:
    tensors = report.parameters.values()
    total, nbytes = sum(t.numel for t in tensors), sum(t.nbytes for t in tensors)
    trainable = sum(t.numel for t in tensors if t.trainable)
    dtypes = " and ".join(sorted({t.dtype for t in tensors}))
    some = f"{count(trainable)}{' (LoRA)' if report.is_lora else ''}"
    mixed = report.fsdp_config.mixed_precision
    frees = report.fsdp_config.reshard_after_forward
    smallest = report.fsdp_config.min_num_params
    keeps = "freed after forward" if frees else "kept until backward (reshard_after_forward: false)"
    joined = f"; units below {count(smallest)} parameters join the one around them (min_num_params)"
    compute, reduce = (_DTYPES.get(name, name) for name in (mixed.param_dtype, mixed.reduce_dtype))
    rows = {
        "model": f"{report.model_type} ({report.cls}), {report.plugin}",
        "parameters": f"{count(total)}, {size(nbytes)} in {dtypes}",
        "trainable": "all" if trainable == total else some,
        "precision": f"computes in {compute}, reduces gradients in {reduce}",
        "sharding": f"gathered units are {keeps}{joined if smallest else ''}",
    }
    return [wrapped(text, " " * 12, f"{name:<12}") for name, text in rows.items()]


# -- units ---


def _units(report: PlanReport) -> list[str]:
    units = {unit.name: unit for unit in report.plan.units}
    folded = fold((u.name, (u.cls, u.rule, u.numel, u.nbytes)) for u in units.values())
    own = sum(tensor.numel for tensor in report.remainder.values())
    rows = [("UNIT", "N", "CLASS", "PARAMETERS", "BYTES")]
    rows.append(("(root)", "1", report.cls, count(own), size(report.plan.remainder_bytes)))
    for label, group in _tree(folded, units):
        unit = units[group.names[0]]
        rows.append((label, str(len(group.names)), unit.cls, count(unit.numel), size(unit.nbytes)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    widths[0] = min(widths[0], max(12, WIDTH - sum(widths[1:]) - 8))
    lines: list[str] = []
    for name, number, cls, numel, nbytes in rows:
        if len(name) > widths[0]:  # a name that leaves no room for the rest has a line of its own
            lines.append(name)
            name = ""
        cells = f"{name:<{widths[0]}}  {number:>{widths[1]}}  {cls:<{widths[2]}}  "
        lines.append(cells + f"{numel:>{widths[3]}}  {nbytes:>{widths[4]}}")
    if len(folded) < len(units):
        lines.append("N: alike units on one line; parameters and bytes are those of one of them")
    return lines


def _tree(folded: Sequence[Folded], units: dict[str, Unit]) -> Iterator[tuple[str, Folded]]:
    """(label with branches, group), each group below the one that holds its units."""
    home = {name: index for index, group in enumerate(folded) for name in group.names}
    children: dict[int | None, list[int]] = {}
    for index, group in enumerate(folded):
        parent = _parent(group.names[0], units)
        children.setdefault(None if parent is None else home[parent], []).append(index)

    def walk(parent: int | None, indent: str) -> Iterator[tuple[str, Folded]]:
        siblings = children.get(parent, [])
        for index in siblings:
            last = index == siblings[-1]
            yield f"{indent}{'└─' if last else '├─'} {folded[index].label}", folded[index]
            yield from walk(index, indent + ("   " if last else "│  "))

    return walk(None, "")


def _parent(name: str, units: dict[str, Unit]) -> str | None:
    while "." in name:
        name = name.rpartition(".")[0]
        if name in units:
            return name
    return None


# -- the root, rules ---


def _remainder(report: PlanReport) -> list[str]:
    remainder = report.remainder
    if not remainder:
        return ["The root keeps nothing: every parameter is in a unit."]
    groups = fold((name, (t.shape, t.dtype, t.trainable)) for name, t in remainder.items())

    def nbytes(group: Folded) -> int:
        return sum(remainder[name].nbytes for name in group.names)

    groups.sort(key=nbytes, reverse=True)
    lines = [f"Not in a unit, gathered by the root for the whole step: {size(report.plan.remainder_bytes)}"]
    cells = [(g.label, _shape(remainder[g.names[0]], len(g.names)), size(nbytes(g))) for g in groups]
    shown, hidden = cells[:_SHOWN_OF_ROOT], groups[_SHOWN_OF_ROOT:]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    widths[0] = min(widths[0], WIDTH - 6 - widths[1] - widths[2])
    for name, shape, total in shown:
        if len(name) > widths[0]:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {total:>{widths[2]}}")
    if hidden:
        more = sum(len(group.names) for group in hidden)
        lines.append(f"  and {more} smaller ones, {size(sum(map(nbytes, hidden)))}; --json names them")
    return lines


def _shape(tensor: Tensor, times: int) -> str:
    return f"{list(tensor.shape)}{f' x {times}' if times > 1 else ''}{'' if tensor.trainable else ' frozen'}"


def _rules(report: PlanReport) -> list[str]:
    if not report.plan.matches:
        return ["No wrap rules: the root gathers the whole model. See fsdp_config.wrap_policy."]
    lines = ["Rules and what they matched"]
    for match in report.plan.matches:
        labels = ", ".join(group.label for group in fold((path, None) for path in match.paths))
        number = f"{len(match.paths)} modules: " if len(match.paths) > 1 else ""
        lines.append(wrapped(match.rule, "    ", "  "))
        lines.append(wrapped(f"{number}{labels or 'the root'}", " " * 6, "    "))
    return lines


# -- bytes per rank ---


def _ranks(estimates: Sequence[RankBytes]) -> list[str]:
    rows = [
        ("parameters", [row.parameters for row in estimates]),
        ("gradients", [row.gradients for row in estimates]),
        ("AdamW's state", [row.optimizer for row in estimates]),
        ("buffers", [row.buffers for row in estimates]),
        ("gathered at once", [row.gathered for row in estimates]),
        ("sum", [row.total for row in estimates]),
        ("largest all-gather", [row.largest_all_gather for row in estimates]),
    ]
    titles = [f"{row.world_size} rank{'s' if row.world_size > 1 else ''}" for row in estimates]
    lines = ["Estimated bytes on rank 0, which holds most"]
    lines.append(f"  {'':<18}" + "".join(f"{title:>12}" for title in titles))
    lines += [f"  {name:<18}" + "".join(f"{size(value):>12}" for value in values) for name, values in rows]
    largest = list(dict.fromkeys(row.largest_unit or "the root" for row in estimates))
    lines.append(wrapped(f"The largest all-gather is that of {', '.join(largest)}.", "  ", "  "))
    return lines
