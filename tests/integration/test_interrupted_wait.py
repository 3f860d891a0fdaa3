"""A signal that comes while the driver waits for its processes arrives soon, as what its handler raised."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import signal, time
from rlinf.cluster.errors import fetch
from rlinf.cluster.ray_cluster import local_ray
from rlinf.runners.recovery import Preempted
from rlinf.runners.train import guarded

def preempted(number, frame):
    raise Preempted

def wait():
    signal.setitimer(signal.ITIMER_REAL, 1)
    fetch([sleep.remote()])

signal.signal(signal.SIGALRM, preempted)
with local_ray(2) as ray:
    sleep = ray.remote(lambda: time.sleep(60))
    begin = time.monotonic()
    print(guarded(wait))
    print(time.monotonic() - begin)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        guarded(wait)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_a_signal_during_a_wait_is_not_a_system_error() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    status, seconds, interrupted = done.stdout.splitlines()[-3:]
    assert (status, interrupted) == ("75", "interrupted") and float(seconds) < 30
