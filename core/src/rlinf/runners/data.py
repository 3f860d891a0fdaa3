"""`rlinf data check` and `rlinf data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rlinf.config import Config
from rlinf.data.demonstrations import is_demonstrations, read_demonstrations
from rlinf.data.episodes import EpisodeDataset
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.formats import AUTO, installed_formats, open_dataset
from rlinf.data.samples import EpisodeSamples
from rlinf.data.stats import FIELDS, FILE, compute_stats, write_norm_stats
from rlinf.data.training import layout_of, open_demonstrations, open_samples
from rlinf.runners.progress import TrainingProgress

#: Problems of one dataset that are printed; the rest is counted.
_SHOWN: Final = 20


def check_datasets(paths: list[str], format_name: str | None, config: Config | None) -> int:
    """Read all of every dataset; prints a line per dataset and per problem. Returns the exit status.

    config: match the datasets with its model as well (raises `DatasetError` where they do not fit).
    """
    damaged = 0
    formats = installed_formats()
    for path in paths:
        if is_demonstrations(Path(path)):
            data = read_demonstrations([Path(path)])
            print(f"{path}: ok, demonstrations of {data.env_type}, {len(data)} samples")
            continue
        dataset = open_dataset(path, format_name or (config.data.format if config else AUTO), formats)
        problems = _check_dataset(dataset)
        damaged += bool(problems)
        print(_verdict(dataset, problems))
        for problem in problems[:_SHOWN]:
            print(f"  {problem}")
        if len(problems) > _SHOWN:
            print(f"  and {len(problems) - _SHOWN} more")
    if config is not None and not damaged and open_demonstrations(config, _folders(config)) is None:
        samples = open_samples(config)
        for number, dataset in enumerate(samples.datasets):
            samples.read(number, 0, 0)
            print(f"{dataset.source}: fits {config.model.model_type} ({_matched(samples, number)})")
    return int(damaged > 0)


def _folders(config: Config) -> list[Path]:
    return [Path(path) for path in config.data.train_data_paths]


def _check_dataset(dataset: EpisodeDataset) -> list[str]:
    problems = []
    with TrainingProgress() as progress:
        progress.phase("check", len(dataset.lengths))
        for episode in range(len(dataset.lengths)):
            try:
                dataset.check(episode)
            except EpisodeError as error:
                problems.append(str(error))
            progress.update(episode + 1)
    return problems


def _verdict(dataset: EpisodeDataset, problems: list[str]) -> str:
    total = len(dataset.lengths)
    what = f"{total} episodes, {int(dataset.lengths.sum())} frames at {dataset.fps:g}/s"
    verdict = f"{len(problems)} of them damaged" if problems else "ok"
    names = [f"{key} {list(feature.shape)}" for key, feature in dataset.features.items()]
    return "\n".join([f"{dataset.source}: {verdict}, {what}", *(f"  {name}" for name in names)])


def _matched(samples: EpisodeSamples, number: int) -> str:
    columns = samples.columns[number]
    parts = [f"{name} = {key}" for name, key in columns.cameras.items()]
    parts += [f"states = {' + '.join(columns.state)}"] if columns.state else []
    return ", ".join([*parts, f"actions = {' + '.join(columns.action)}"])


def write_stats(config: Config, output: str | None) -> int:
    """Compute the statistics of the configuration's datasets and write them. Returns the exit status."""
    if open_demonstrations(config, _folders(config)) is not None:
        raise DatasetError("demonstrations hold no episodes to compute statistics of; record as lerobot")
    whole = config.model_copy(update={"data": config.data.model_copy(update={"val_fraction": 0.0})})
    samples = open_samples(whole)
    layout_of(whole)
    target = Path(output or config.data.train_data_paths[0])
    if output is None and not target.is_dir():
        raise DatasetError(f"{target} is no local folder: say with --output where the statistics go")
    with TrainingProgress() as progress:
        progress.phase("statistics", len(samples.each_episode()))
        stats = compute_stats(samples, progress.update)
    write_norm_stats(target, stats)
    print(f"{target if target.suffix == '.json' else target / FILE}: {len(samples)} samples")
    for key, one in stats.items():
        print(f"  {key:<8} {len(one.mean)} numbers")
        for name in FIELDS:
            values = getattr(one, name)
            shown = " ".join(f"{value:.3g}" for value in values[:8])
            print(f"    {name:<5} {shown}{' ...' if len(values) > 8 else ''}")
    return 0
