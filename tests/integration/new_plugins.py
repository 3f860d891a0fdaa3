"""Trains each of the model types named on the command line for one step, on one Ray: `python new_plugins.py
FOLDER MODEL_TYPE...`. A process of its own, because the plugins are on its PYTHONPATH."""

from __future__ import annotations

import sys

from rlinf.cli.main import main
from rlinf.cli.scaffold import QUICK
from rlinf.cluster.ray_cluster import local_ray

#: Two env and two trainer processes; no report, and evaluations as small as they can be.
SMALL = (*QUICK, "runner.report=false", "env.eval.num_episodes=2", "env.eval.blind=false")

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    with local_ray(8):
        for name in names:
            output = f"runner.output_dir={folder}/{name}"
            status = main(["train", f"model.model_type={name}", output, *SMALL])
            if status:
                sys.exit(f"{name}: rlinf train ended with status {status}")
