"""`rlinf plugins list | show NAME | check [NAME] | new NAME`.

`list` reads metadata only. Everything beyond `argparse` is imported where it is used, because this command is
measured against a bare `importlib.metadata.entry_points()`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rlinf.cli import plugins_new
from rlinf.plugins.text import WIDTH, wrapped

if TYPE_CHECKING:
    from rlinf.plugins.check import Report
    from rlinf.plugins.discovery import Discovered, PluginPolicy
    from rlinf.plugins.host import PluginHost


_EXAMPLES = """examples:
  rlinf plugins list
  rlinf plugins list --json
  rlinf plugins list --deny rlinf-plugin-mine
  rlinf plugins show tiny_vla
  rlinf plugins check
  rlinf plugins check openvla --override openvla=rlinf-plugin-mine
  rlinf plugins new my_model --family gaussian"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `plugins` to what `ArgumentParser.add_subparsers()` returned; `run` is its function."""
    parser = subparsers.add_parser(
        "plugins",
        help="list, show, check installed plugins; begin a new one",
        description="Plugins: the models and environments that installed distributions offer.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="plugins_command", metavar="COMMAND", required=True)
    for name, text in (
        ("list", "names, distributions, versions and states; imports no plugin"),
        ("show", "what one plugin declares; imports it"),
        ("check", "import plugins, each in a process of its own, and validate all that they declare"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name != "list":
            command.add_argument("name", nargs=None if name == "show" else "?", help="model_type or env_type")
        command.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_argument("--allow", action="append", metavar="DIST", help="as plugins.allow (repeatable)")
        command.add_argument("--deny", action="append", default=[], metavar="DIST", help="as plugins.deny")
        command.add_argument(
            "--override", action="append", default=[], metavar="NAME=DIST", help="as plugins.override"
        )
    plugins_new.add_parser(commands)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status: 0, or 1 if a check found an error. Errors: `PluginError`."""
    if args.plugins_command == "new":
        return plugins_new.run(args)
    host = _host(args)
    if args.plugins_command == "list":
        return _list(host, args.json)
    if args.plugins_command == "show":
        return _show(host, args.name, args.json)
    return _check(host, args.name, args.json)


def _host(args: argparse.Namespace) -> PluginHost:
    """The process's host under the policy of the options. The extension module, if its variable is set, is
    user code that may register and override models: it is loaded, so that this shows."""
    import os

    from rlinf.plugins.host import configure_host

    host = configure_host(_policy(args))
    if os.environ.get("RLINF_EXT_MODULE"):
        from rlinf.plugins.extension import load_ext_module

        load_ext_module()
    return host


def _policy(args: argparse.Namespace) -> PluginPolicy:
    from rlinf.plugins.discovery import PluginPolicy
    from rlinf.plugins.errors import PluginError

    override = {}
    for pair in args.override:
        name, equals, distribution = pair.partition("=")
        if not (name and equals and distribution):
            raise PluginError(f"--override: expected NAME=DIST, got {pair!r}")
        override[name] = distribution
    allow = None if args.allow is None else tuple(args.allow)
    return PluginPolicy(allow=allow, deny=tuple(args.deny), override=override)


# -- list ---


def _list(host: PluginHost, as_json: bool) -> int:
    rows = host.discover()
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps({"plugins": [asdict(row) for row in rows], "problems": host.problems()}, indent=1))
        return 0
    cells = [("NAME", "KIND", "DISTRIBUTION", "VERSION", "STATE")]
    cells += [(row.name, _kind(row), row.distribution, row.version or "-", row.state) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    wide = sum(widths) + 4 * 2 + max(len(line[4]) for line in cells) > WIDTH
    for line, row in zip(cells, [None, *rows]):
        if wide:  # no table of 80 columns holds these names: two lines each
            print(f"{line[0]}\n  {'  '.join(line[1:])}")
        else:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, [*widths, 0])).rstrip())
        if row is not None and row.note:
            _print_wrapped(row.note, "    ")
    for problem in host.metadata_problems():
        _print_wrapped(f"problem: {problem}", "  ")
    return 0


def _kind(row: Discovered) -> str:
    return row.group.removeprefix("rlinf.").removesuffix("s")


def _print_wrapped(text: str, indent: str, first: str | None = None) -> None:
    """Print at most `WIDTH` columns wide where there are spaces to break at; tracebacks keep their
    indentation."""
    for number, line in enumerate(text.splitlines() or [""]):
        inner = line[: len(line) - len(line.lstrip())]
        start = first if first is not None and number == 0 else indent
        print(wrapped(line.strip(), indent + inner + ("  " if number else ""), start + inner))


# -- show ---


def _show(host: PluginHost, name: str, as_json: bool) -> int:
    from rlinf.plugins.discovery import GROUPS

    groups = [group for group in GROUPS if name in host.offered(group)]
    if not groups:
        host.select("rlinf.models", name)  # raises, with the known names
    shown = [_describe(host, group, name) for group in groups]
    if as_json:
        import json

        print(json.dumps(shown, indent=1))
        return 0
    for number, fields in enumerate(shown):
        if number:
            print()
        for key, value in fields.items():
            lines = value if isinstance(value, list) else [value]
            for index, line in enumerate(lines or ["-"]):
                _print_wrapped(str(line), " " * 18, f"{key if index == 0 else '':<18}")
    return 0


def _describe(host: PluginHost, group: str, name: str) -> dict[str, Any]:
    """What one plugin declares; resolves its schema, not its model."""
    from dataclasses import fields

    from rlinf.plugins.loading import target_of
    from rlinf.plugins.plan import entry_of

    row = host.select(group, name)
    spec: Any = host.spec_of(group, name)
    entry = entry_of(host, row)
    shown: dict[str, Any] = {
        "name": name,
        "kind": _kind(row),
        "distribution": f"{row.distribution} {row.version}".rstrip(),
        "path": row.path,
        "module": row.target,
        "state": f"{row.state} ({row.note})" if row.note else row.state,
        "content hash": entry.content_hash,
    }
    for field in fields(spec):
        value = getattr(spec, field.name)
        if value in (None, "", ()) or field.name in ("model_type", "env_type", "reward_type"):
            continue
        if field.name == "wrap_policy":
            value = [
                f"{rule.name}: {', '.join(getattr(value, rule.name))}"
                for rule in fields(value)
                if getattr(value, rule.name)
            ]
        elif callable(value):
            value = target_of(value)
        shown[field.name] = list(value) if isinstance(value, tuple) else value
    if spec.config_schema is not None:
        schema = host.resolve(spec, "config_schema")
        shown["config keys"] = [_key_line(key, item) for key, item in schema.model_fields.items()]
    return shown


def _key_line(key: str, item: Any) -> str:
    annotation = getattr(item.annotation, "__name__", None)
    if annotation is None or getattr(item.annotation, "__args__", None):
        annotation = str(item.annotation).replace("typing.", "")
    default = "required" if item.is_required() else f"= {item.get_default(call_default_factory=True)!r}"
    return f"{key}: {annotation} {default}  {item.description or ''}".rstrip()


# -- check ---


def _check(host: PluginHost, name: str | None, as_json: bool) -> int:
    from rlinf.plugins.check import check_all

    rows = [row for row in host.discover() if name is None or row.name == name]
    if name is not None and not rows:
        host.select("rlinf.models", name)  # raises, with the known names
    registered = [row for row in rows if row.state in ("registered", "forced")]
    reports = check_all([row for row in rows if row not in registered], host.policy)
    problems = host.metadata_problems() if name is None else ()
    failed = any(report.errors for report in reports)
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps({"reports": [asdict(report) for report in reports], "problems": problems}, indent=1))
        return int(failed)
    for report in reports:
        _print_report(report)
    for problem in problems:
        _print_wrapped(f"problem: {problem}", "  ")
    bad = sum(bool(report.errors) for report in reports)
    print(f"{len(reports)} plugin module(s) checked, {bad} with errors")
    return int(failed)


def _print_report(report: Report) -> None:
    verdict = "error" if report.errors else "ok"
    timing = f", import {report.import_ms:.0f} ms" if report.import_ms is not None else ""
    origin = f"{report.distribution} {report.version}, {report.module}{timing}"
    head = f"{verdict}: {', '.join(report.names)} ({origin})"
    _print_wrapped(head, "    ", "")
    for kind, lines in (("error", report.errors), ("warning", report.warnings)):
        for line in lines:
            _print_wrapped(line, "    ", f"  {kind}: ")
