"""What every process of a run does before its own work: configuration, plugins, seeds, threads."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from rlinf.cluster.errors import UserError
from rlinf.config import Config
from rlinf.workers.layout import EnvLayout

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class WorkerArgs:
    """What a process is told at birth; only names and numbers travel, no code.

    config: `Config.model_dump(mode="json")`. plan: `Plan.to_json()`. threads: CPU threads of torch.
    """

    role: str
    rank: int
    world_size: int
    threads: int
    config: dict[str, Any]
    plan: str
    layout: EnvLayout


def user_errors(method: F) -> F:
    """Turn errors about configuration, plugins or data into `UserError`, which crosses processes whole."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from pydantic import ValidationError

        from rlinf.config import ConfigError
        from rlinf.data.demonstrations import DatasetError
        from rlinf.plugins import PluginError
        from rlinf.rewards import RewardError

        try:
            return method(*args, **kwargs)
        except (PluginError, ConfigError, DatasetError, RewardError, ValidationError) as error:
            raise UserError(str(error)) from None

    return wrapped  # type: ignore[return-value]


class Worker:
    """Base of the run's Ray actors. `preflight` comes first on all of them, then `start`."""

    def __init__(self, args: WorkerArgs) -> None:
        self.args = args
        self.rank = args.rank

    @user_errors
    def preflight(self) -> None:
        """Check that this process resolves the run's plugins as the driver did, before anything is built.

        Raises:
            UserError: it does not (with the difference), or the extension module does not load.
        """
        from rlinf.cluster.preflight import GROUPS_OF
        from rlinf.plugins import Plan, load_ext_module, verify_plan
        from rlinf.plugins.discovery import GROUPS

        load_ext_module()
        has_own = (self.args.config.get(self.args.role) or {}).get("runtime_env") is not None
        groups = GROUPS_OF[self.args.role] if has_own else GROUPS
        self.resolved = verify_plan(Plan.from_json(self.args.plan), groups)

    @user_errors
    def start(self) -> None:
        """Build what the worker needs, then call the plugins' `rlinf_worker_started`."""
        from rlinf.plugins import get_host
        from rlinf.workers.allocator import keep_freed_memory

        keep_freed_memory()
        self.config = Config.model_validate(self.args.config)
        self.layout = self.args.layout
        self.seed = self.config.runner.seed
        self.setup()
        get_host().hook.rlinf_worker_started(role=self.args.role, rank=self.rank)

    def setup(self) -> None:
        """Build environments or models."""
        raise NotImplementedError

    def build_model(self) -> Any:
        """The policy with weights that `runner.seed` determines, the same in every process; sets torch's
        threads."""
        import torch

        from rlinf.data.seeds import Stream, derive
        from rlinf.models import get_model

        torch.set_num_threads(self.args.threads)
        torch.manual_seed(derive(self.seed, Stream.WEIGHTS))
        return get_model(self.config.model)

    def episode_seeds(self, stage: int, iteration: int) -> list[int]:
        """Seeds of the first episodes of a rollout in the environments of `stage`; a GRPO group has one."""
        from rlinf.data.seeds import episode_seed

        group_size = self.config.algorithm.group_size
        return [
            episode_seed(self.seed, iteration, int(index) // group_size)
            for index in self.layout.indices(stage, self.rank)
        ]

    def agreement(self) -> dict[str, str]:
        """What the ranks of a component compare before they work together, by name: the plugins that this
        process resolved, the action processors, every key of the configuration but secrets."""
        from rlinf.config.secrets import redacted
        from rlinf.plugins import get_host

        env_type, model_type = self.config.env.env_type, self.config.model.model_type
        plugins = {
            f"plugin {e.group} {e.name}": f"{e.distribution} {e.version} {e.target} {e.content_hash}"
            for e in self.resolved.entries
        }
        processors = [spec.function for spec in get_host().action_processors(env_type, model_type)]
        settings = {f"config {key}": str(value) for key, value in _leaves(redacted(self.args.config))}
        return {**plugins, "action processors": ", ".join(processors), **settings}

    def device(self) -> Any:
        """The accelerator that Ray gave this process, or the CPU."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def whereabouts(self) -> dict[str, Any]:
        """Component, rank, host and process id."""
        return {
            "component": self.args.role,
            "rank": self.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def peak_memory(self) -> int:
        """Largest resident size of this process so far, in bytes."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a nested mapping."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{path}.{key}" if path else key)
