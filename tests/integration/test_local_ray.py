"""The Ray that a run starts by itself: on loopback alone, with token authentication, and gone at the end."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, os, psutil
from rlinf.cluster.ray_cluster import local_ray
with local_ray(2) as ray:
    from ray._raylet import AuthenticationMode, get_authentication_mode
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    mine = [me, *me.children(recursive=True)]
    hosts = {c.laddr.ip for p in mine for c in p.net_connections("inet") if c.status == "LISTEN"}
    print(json.dumps(sorted(hosts)))
    print(get_authentication_mode() == AuthenticationMode.TOKEN)
gone, alive = psutil.wait_procs(mine[1:], timeout=20)
print([p.name() for p in alive])
"""


def test_ports_are_on_loopback_and_all_processes_end() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    hosts, has_token, alive = done.stdout.splitlines()[-3:]
    assert set(json.loads(hosts)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert (has_token, alive) == ("True", "[]")
