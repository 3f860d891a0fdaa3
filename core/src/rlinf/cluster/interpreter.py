"""The Python of an environment of its own (`env.runtime_env`), before Ray starts a process in it.

Ray starts a worker whose Python does not run, or has another Ray, again and again, and says nothing: so this
is found out first.
"""

from __future__ import annotations

import json
import subprocess
from typing import Final

#: Seconds for the interpreter to answer.
_TIMEOUT_S: Final = 60.0
#: What must be as in the driver: Ray's processes talk to each other in these versions.
SHARED: Final = ("python", "ray", "rlinf-core")
_PROBE: Final = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in ("ray", "rlinf-core"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def interpreter_rows(path: str, expected: dict[str, str]) -> list[tuple[str, str, str]]:
    """(what, expected, got) of all that keeps Ray from using the Python at `path`, on this machine.

    expected: version by name, of those in `SHARED`.
    """
    try:
        done = subprocess.run([path, "-c", _PROBE], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except OSError as error:
        return [("py_executable", path, error.strerror or str(error))]
    except subprocess.TimeoutExpired:
        return [("py_executable", path, f"no answer within {_TIMEOUT_S:.0f} s")]
    if done.returncode:
        return [("py_executable", path, done.stderr.strip() or f"ended with status {done.returncode}")]
    found = json.loads(done.stdout.splitlines()[-1])
    pairs = [(name, expected[name], found.get(name, "absent")) for name in SHARED]
    return [(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]
