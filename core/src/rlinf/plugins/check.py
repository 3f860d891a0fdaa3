"""`rlinf plugins check`: load each plugin in a process of its own and say what is wrong with it.

A process of its own because one plugin's imports would hide the next one's, and because a plugin that ends
the interpreter must not end the check.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rlinf.plugins.discovery import Discovered, PluginPolicy
from rlinf.plugins.errors import PluginError, PluginLoadError
from rlinf.plugins.loading import resolve_attr

if TYPE_CHECKING:
    from rlinf.plugins.host import PluginHost

#: Packages that a plugin's module should leave to what its specs name as `"module:attr"`.
HEAVY: Final = ("torch", "transformers", "ray", "peft", "jax", "tensorflow", "mujoco", "scipy", "pandas")

#: The fields of specs that hold `"module:attr"`.
_TARGETS: Final = ("builder", "factory", "config_schema", "processor", "expert", "data_layout", "exporter")


_CHECKED: Final = ("ok", "conflict", "broken")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the check found about one module, which may stand behind several entry points."""

    names: tuple[str, ...]
    distribution: str
    version: str
    module: str
    #: Milliseconds to import the module (without the plugin host and pluggy); None if it was not imported.
    import_ms: float | None = None
    #: Costly packages that the import brought in.
    heavy: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_all(rows: Iterable[Discovered], policy: PluginPolicy) -> list[Report]:
    """Check the modules behind `rows`; one child process per module that may be loaded."""
    modules: dict[tuple[str, str, str], list[Discovered]] = {}
    for row in rows:
        modules.setdefault((row.distribution, row.path, row.target), []).append(row)
    return [_check_module(found, policy) for found in modules.values()]


def _check_module(rows: Sequence[Discovered], policy: PluginPolicy) -> Report:
    first = rows[0]
    report = Report(
        names=tuple(row.name for row in rows),
        distribution=first.distribution,
        version=first.version,
        module=first.target,
    )
    errors = [f"{row.name}: {row.state}, {row.note}" for row in rows if row.state in ("conflict", "broken")]
    idle = [f"{row.name}: {row.state}, {row.note}" for row in rows if row.state not in _CHECKED]
    able = [row for row in rows if row.state == "ok"]
    found = _in_child(able, policy) if able else {}
    return replace(
        report,
        import_ms=found.get("import_ms"),
        heavy=tuple(found.get("heavy", ())),
        errors=(*errors, *found.get("errors", ())),
        warnings=(*idle, *found.get("warnings", ())),
    )


def _in_child(rows: Sequence[Discovered], policy: PluginPolicy) -> dict[str, Any]:
    import subprocess

    task = {
        "path": sys.path,
        "policy": asdict(policy),
        "names": [(row.group, row.name) for row in rows],
    }
    code = "import sys; from rlinf.plugins.check import child; child()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(task), capture_output=True, text=True, env=environment
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        end = "\n".join(done.stderr.splitlines()[-15:])
        return {"errors": (f"the process that loaded it ended with status {done.returncode}\n{end}",)}


def child() -> None:
    """The child's side: reads the task from standard input, writes one line of JSON as its last output."""
    task = json.load(sys.stdin)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a plugin prints while it is imported is not the report
    sys.path[:] = [entry for entry in task["path"] if isinstance(entry, str)]
    from rlinf.plugins.host import configure_host

    host = configure_host(PluginPolicy(**task["policy"]))
    rows = [host.select(group, name) for group, name in task["names"]]
    host.manager  # noqa: B018 - pluggy and the specifications are loaded before the clock starts
    findings = Findings()
    before = set(sys.modules)
    start = time.perf_counter()
    module = findings.attempt(partial(host.load, rows[0]))
    import_ms = (time.perf_counter() - start) * 1e3
    new = set(sys.modules) - before
    heavy = [name for name in HEAVY if name in new]
    if heavy:
        findings.warnings.append(
            f"imports {', '.join(heavy)} at look-up; name such code as 'module:attr' instead"
        )
    if module is not None:
        for row in rows:
            _check_name(host, row, findings)
        for spec in findings.attempt(partial(host.processors_of, module)) or ():
            findings.attempt(partial(host.resolve, spec, "function"))
        for fmt in findings.attempt(partial(host.formats_of, module)) or ():
            for field in ("reader", "writer", "matches"):
                if getattr(fmt, field) is not None:
                    of = f"DatasetFormatSpec.{field} of {fmt.name!r} from {rows[0].label}"
                    findings.attempt(partial(resolve_attr, getattr(fmt, field), of=of))
    result = {
        "import_ms": import_ms,
        "heavy": heavy,
        "errors": findings.errors,
        "warnings": findings.warnings,
    }
    report.write(json.dumps(result))
    report.flush()
    os._exit(0)  # what plugins left running (threads, exit handlers) must not hold the check up


class Findings:
    """Errors and warnings as they are found."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def attempt(self, step: Callable[[], Any], hint: str = "") -> Any:
        """The step's result, or None when it failed. A module that is missing is but a warning if the
        plugin says (`hint`) how to install what it needs."""
        try:
            return step()
        except PluginError as error:
            missing = isinstance(error, PluginLoadError) and "ModuleNotFoundError" in error.original_traceback
            if hint and missing:
                self.warnings.append(f"not usable yet: {str(error).splitlines()[0]}\nto install it: {hint}")
            else:
                self.errors.append(str(error))
            return None


def _check_name(host: PluginHost, row: Discovered, findings: Findings) -> None:
    spec = findings.attempt(partial(host.spec_of, row.group, row.name))
    if spec is None:
        return
    hint = getattr(spec, "install_hint", "")
    for field in _TARGETS:
        if getattr(spec, field, None) is None:
            continue
        found = findings.attempt(partial(host.resolve, spec, field), hint)
        if found is not None and field == "config_schema":
            _check_schema(row, found, findings)
        elif found is not None and not callable(found):
            findings.errors.append(
                f"{row.name}: {field} {getattr(spec, field)!r} is not callable, it is {found!r}"
            )
    wrap_policy = getattr(spec, "wrap_policy", None)
    for predicate in wrap_policy.predicates if wrap_policy else ():
        of = f"WrapPolicySpec.predicates of {row.name!r} from {row.label}"
        findings.attempt(partial(resolve_attr, predicate, of=of))


def _check_schema(row: Discovered, schema: Any, findings: Findings) -> None:
    from pydantic import BaseModel

    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        findings.errors.append(f"{row.name}: config_schema must be a pydantic model, got {schema!r}")
        return
    silent = [name for name, field in schema.model_fields.items() if not field.description]
    if silent:
        findings.warnings.append(
            f"{row.name}: {schema.__name__} describes not all fields: {', '.join(silent)}"
        )
    if schema.model_config.get("extra") != "forbid":
        findings.warnings.append(f"{row.name}: {schema.__name__} should refuse unknown keys (extra='forbid')")
