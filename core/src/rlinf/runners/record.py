"""`rlinf data record`: episodes of a scripted expert, or of a checkpoint's policy, as a dataset.

One process, one simulator: a recording is made once. What an episode holds depends on its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np

from rlinf.cluster.errors import UserError
from rlinf.config import Config, plugin_subtree
from rlinf.data.episodes import EpisodeWriter, Feature
from rlinf.data.formats import installed_formats, writer_of
from rlinf.data.seeds import Stream, demonstration_seed
from rlinf.envs.action_utils import prepare_actions
from rlinf.envs.observations import stack
from rlinf.envs.vector import env_factory
from rlinf.plugins import get_host, resolve_attr
from rlinf.runners.progress import TrainingProgress

#: An actor that succeeds less often than once in this many episodes is not worth recording.
_MAX_ATTEMPTS_PER_SUCCESS: Final = 20
#: Frames per second where the simulator does not say.
_FPS: Final = 10.0
#: Observation key -> feature; further views are numbered.
_NAMES: Final = {
    "main_images": "observation.images.main",
    "wrist_images": "observation.images.wrist",
    "extra_view_images": "observation.images.extra",
    "states": "observation.state",
}

#: Feature of the actor's reasoning, where it gives one.
_REASONING: Final = "reasoning"

#: Called with an observation; the actions [n, action_dim] to execute next, n >= 1, and what they are for.
Actor = Callable[[dict[str, Any]], tuple[np.ndarray, str | None]]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """frames: {feature: [T, ...]}, the observation before each action and the action."""

    frames: dict[str, np.ndarray]
    task: str
    success: bool


def record_dataset(
    folder: str,
    config: Config | None,
    *,
    checkpoint: str | None,
    episodes: int,
    format_name: str,
    png: bool,
    keep_failures: bool,
) -> int:
    """See the module. `config` None: that of the checkpoint. Returns the exit status.

    Raises:
        DatasetError: the format has no writer.
        UserError: the environment has no expert, the checkpoint is none, too few episodes succeed.
    """
    policy, config = (None, config) if checkpoint is None else _load_policy(Path(checkpoint))
    assert config is not None
    env_type = config.env.env_type
    make_writer = writer_of(format_name, installed_formats(), "--format")
    env = env_factory(env_type, plugin_subtree(config, "env"))()
    try:
        actor = _expert(env, config) if policy is None else _policy_actor(env, config, policy)
        fps = float(env.unwrapped.metadata.get("render_fps", _FPS))
        with TrainingProgress() as progress:
            progress.phase("recording", episodes)
            kept, tried = _record(
                env, config, actor, episodes, keep_failures, progress.update,
                lambda first: make_writer(Path(folder), features_of(first, png), fps=fps),
            )  # fmt: skip
    finally:
        env.close()
    print(f"{folder}: {kept} episodes ({tried} played) of {env_type} in the format {format_name}")
    return 0


def _record(
    env: gymnasium.Env,
    config: Config,
    actor: Callable[[int], Actor],
    wanted: int,
    keep_failures: bool,
    progress: Callable[[int], None],
    make_writer: Callable[[Mapping[str, np.ndarray]], EpisodeWriter],
) -> tuple[int, int]:
    """Returns the numbers of episodes kept and played."""
    writer: EpisodeWriter | None = None
    kept = tried = 0
    with ExitStack() as opened:
        while kept < wanted:
            if tried >= _MAX_ATTEMPTS_PER_SUCCESS * (kept + 1):
                raise UserError(f"only {kept} of {tried} episodes succeeded; record all with --keep-failures")
            episode = play(env, demonstration_seed(config.runner.seed, tried), actor(tried))
            tried += 1
            if not (episode.success or keep_failures):
                continue
            if writer is None:
                writer = opened.enter_context(make_writer(episode.frames))
            writer.add(episode.frames, episode.task)
            kept += 1
            progress(kept)
    return kept, tried


def play(env: gymnasium.Env, seed: int, actor: Actor) -> Episode:
    """One episode; an actor that gives several actions is asked again when they are used up."""
    obs, _ = env.reset(seed=seed)
    task = obs["task_descriptions"]
    frames: dict[str, list[np.ndarray]] = {}
    queue: list[np.ndarray] = []
    reasoning: str | None = None
    done = False
    info: dict[str, Any] = {}
    while not done:
        if not queue:
            actions, reasoning = actor(obs)
            queue = list(actions)
        action = np.asarray(queue.pop(0), np.float32)
        text = {} if reasoning is None else {_REASONING: reasoning}
        for key, value in {**named(obs), "action": action, **text}.items():
            frames.setdefault(key, []).append(np.array(value))
        obs, _, terminated, truncated, info = env.step(action)
        done = bool(terminated or truncated)
    stacked = {key: np.stack(values) for key, values in frames.items()}
    return Episode(frames=stacked, task=task, success=bool(info["success"]))


def named(obs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An environment's observation under the names that datasets have."""
    out: dict[str, np.ndarray] = {}
    for key, name in _NAMES.items():
        if key == "extra_view_images" and key in obs:
            out |= {f"{name}_{i}": view for i, view in enumerate(obs[key])}
        elif key in obs:
            out[name] = obs[key]
    return out


def features_of(frames: Mapping[str, np.ndarray], png: bool) -> dict[str, Feature]:
    """The features of recorded frames [T, ...]."""
    features = {}
    for key, values in frames.items():
        if key.startswith("observation.images."):
            kind: Any = "image" if png else "video"
            features[key] = Feature(shape=values.shape[1:], dtype="uint8", kind=kind)
        elif key == _REASONING:
            features[key] = Feature(shape=(), dtype="str")
        else:
            features[key] = Feature(shape=values.shape[1:], dtype="float32")
    return features


def _expert(env: gymnasium.Env, config: Config) -> Callable[[int], Actor]:
    """Episode number -> actor: the environment's expert."""
    spec = get_host().env_spec(config.env.env_type)
    if spec.expert is None:
        raise UserError(f"the environment {spec.env_type!r} has no scripted expert: give a --checkpoint")
    expert = resolve_attr(spec.expert)(env)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    low, high = env.action_space.low, env.action_space.high

    def begin(number: int) -> Actor:
        pending = [np.random.default_rng([config.runner.seed, Stream.EXPERT, number])]

        def act(obs: dict[str, Any]) -> tuple[np.ndarray, str | None]:
            if pending:
                expert.reset(pending.pop())
            action = np.clip(expert.act(), low, high)[None]
            return action, getattr(expert, "reasoning", None)

        return act

    return begin


def _policy_actor(env: gymnasium.Env, config: Config, policy: Any) -> Callable[[int], Actor]:
    """Episode number -> actor: the policy, deterministic."""
    import torch

    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)

    def act(obs: dict[str, Any]) -> tuple[np.ndarray, str | None]:
        with torch.inference_mode():
            actions, result = policy.predict_action_batch(stack([obs]), mode="eval", compute_values=False)
        prepared = prepare_actions(
            actions.float().cpu().numpy(),
            config.env.env_type,
            config.model.model_type,
            action_space=space,
        )
        texts = result.get("texts")
        return prepared[0], None if texts is None else texts[0]

    return lambda number: act


def _load_policy(checkpoint: Path) -> tuple[Any, Config]:
    """The policy of a checkpoint and its configuration."""
    import torch

    from rlinf.config import use_plugins
    from rlinf.fsdp.checkpoint import CheckpointError, verify
    from rlinf.fsdp.state import load_model_state
    from rlinf.models import get_model

    try:
        config = Config.model_validate(verify(checkpoint)["config"])
    except CheckpointError as error:
        raise UserError(str(error)) from None
    use_plugins(config.plugins)
    policy = get_model(config.model)
    load_model_state(policy, checkpoint)
    return policy.to("cuda" if torch.cuda.is_available() else "cpu").eval(), config
