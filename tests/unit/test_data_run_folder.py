"""The run folder, where a run continues, the metric sinks, and errors of other processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from rlinf.cluster.errors import RunError, UserError, explain
from rlinf.config import Config, ConfigError, load_config
from rlinf.envs.results import EpisodeEnd
from rlinf.fsdp.checkpoint import CheckpointStore
from rlinf.plugins import Plan
from rlinf.runners.embodied import Evaluation, merge_stats, rollout_metrics
from rlinf.runners.metrics import MetricLog, check_loggers
from rlinf.runners.run_folder import RunFolder, RunState
from rlinf.runners.train import _resume_point, make_plan, run_training
from rlinf.workers.env import EnvStats


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config("tabletop_ppo", [f"runner.output_dir={tmp_path / 'run'}"])


@pytest.fixture
def plan(config: Config) -> Plan:
    return make_plan(config)


def test_folder_in_use_is_refused_unless_resuming(config: Config, plan: Plan, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.open(config, plan, resume=False):
        pass
    refused = pytest.raises(UserError, match=r"runner\.output_dir.*is not empty.*runner\.resume=true")
    with refused, folder.open(config, plan, resume=False):
        raise AssertionError("not reached")
    with folder.open(config, plan, resume=True):
        busy = pytest.raises(UserError, match=r"another run is at work in .* \(process \d+ on ")
        with busy, RunFolder(folder.path).open(config, plan, resume=True):
            raise AssertionError("not reached")
    assert load_config(tmp_path / "run" / "config.yaml") == config
    assert Plan.from_json((tmp_path / "run" / "plan.json").read_text()) == plan


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.truncate(0)
    for step in range(5):
        folder.append({"phase": "rl", "step": step})
    folder.truncate(3)
    assert [json.loads(x)["step"] for x in folder.metrics_path.read_text().splitlines()] == [0, 1, 2]
    with pytest.raises(UserError, match="has 3 lines, the checkpoint was made after 4"):
        folder.truncate(4)


def _checkpoint(config: Config, plan: Plan, state: RunState) -> None:
    metadata = {"plan": plan.to_json(), "config": {}, "versions": {}, "state": state.to_json()}
    with CheckpointStore(config.runner.output_dir).writing(state.iteration, metadata) as folder:
        (folder / "weights").write_bytes(b"1234")


def test_resume_finds_the_state_and_refuses_other_plugins(config: Config, plan: Plan) -> None:
    assert _resume_point(config, plan, False) == (None, RunState())
    resuming = config.model_copy(update={"runner": config.runner.model_copy(update={"resume": True})})
    assert _resume_point(resuming, plan, False) == (None, RunState()), "nothing to continue: a new run"

    state = RunState(phase="rl", iteration=7, rows=12, frames=900, results={"success_after_sft": 0.5})
    changed = json.loads(plan.to_json())
    changed["entries"][0]["version"] = "0.0.1"
    _checkpoint(config, Plan.from_json(changed), state)
    with pytest.raises(UserError, match="other plugins") as caught:
        _resume_point(resuming, plan, False)
    assert "0.0.1" in str(caught.value) and "--allow-plugin-drift" in str(caught.value)
    path, found = _resume_point(resuming, plan, True)
    assert found == state and path is not None and path.name == "step_7"


def test_damaged_checkpoints_are_an_error_of_their_own(config: Config, plan: Plan) -> None:
    _checkpoint(config, plan, RunState(iteration=1))
    (config.runner.output_dir / "checkpoints" / "step_1" / "weights").write_bytes(b"123")
    resuming = config.model_copy(update={"runner": config.runner.model_copy(update={"resume": True})})
    with pytest.raises(UserError, match="damaged"):
        _resume_point(resuming, plan, False)


def test_placement_beyond_the_machine_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["cluster.component_placement.rollout=900", f"runner.output_dir={tmp_path / 'run'}"]
    for dry_run in (True, False):
        assert run_training(load_config("tabletop_ppo", overrides), dry_run=dry_run) == 2
        assert "rank 900 asks for 901 places" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_was_logged(config: Config, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, state = RunFolder(tmp_path), RunState()
    log = MetricLog(folder, config, state)
    for step in (1, 2, 3):
        log.write("rl", step, {"train/loss": step / 2})
    log.close()
    assert state.rows == 3
    resumed = MetricLog(folder, config, RunState(iteration=2, rows=3))
    resumed.write("rl", 3, {"train/loss": 9.0})
    resumed.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert points == [(1, 0.5), (2, 1.0), (3, 9.0)], "the interrupted run's step 3 is replaced"


def test_missing_wandb_names_its_install_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    runner = config.runner.model_copy(update={"loggers": ["wandb"]})
    with pytest.raises(UserError, match=r"pip install 'rlinf-core\[wandb\]'"):
        check_loggers(config.model_copy(update={"runner": runner}))
    check_loggers(config)


def _task_error(cause: Exception) -> Exception:
    error = ray.exceptions.RayTaskError("step", "line 1 of the worker", cause)
    return error.as_instanceof_cause()


def test_errors_of_workers_are_unwrapped() -> None:
    user = explain(_task_error(UserError("set this key")))
    assert isinstance(user, UserError) and str(user) == "set this key"
    failure = explain(_task_error(_task_error(ZeroDivisionError("division by zero"))))
    assert isinstance(failure, RunError)
    assert str(failure).startswith("ZeroDivisionError: division by zero")
    assert "line 1 of the worker" in str(failure) and "\x1b" not in str(failure)
    from rlinf.config import Problem

    assert isinstance(explain(_task_error(ConfigError([Problem(key="a.b", message="no")]))), UserError)


def _episode(index: int, success: bool, length: int) -> EpisodeEnd:
    return EpisodeEnd(index=index, seed=0, success=success, length=length, return_=float(success))


def test_reports_of_env_processes_add_up() -> None:
    one = EnvStats(frames=10, episodes=[_episode(3, True, 4)], errors={"a": 1})
    two = EnvStats(frames=5, episodes=[_episode(1, False, 8)], errors={"a": 2, "b": 1})
    both = merge_stats([one, two])
    assert both.frames == 15 and both.errors == {"a": 3, "b": 1}
    assert [episode.index for episode in both.episodes] == [1, 3]
    metrics: dict[str, Any] = rollout_metrics(both)
    assert metrics["rollout/success_rate"] == 0.5 and metrics["rollout/episode_length"] == 6
    empty = rollout_metrics(EnvStats(frames=0, episodes=[], errors={}))
    assert empty == {"rollout/episodes": 0}, "no episode ended: there is no rate"


def test_evaluation_by_instruction() -> None:
    result = Evaluation(success=[True, False, True], instructions=["b", "a", "b"], mean_length=3.0)
    assert result.success_rate == pytest.approx(2 / 3)
    assert result.by_instruction() == {"a": 0.0, "b": 1.0}
