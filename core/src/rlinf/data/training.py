"""The datasets of a run: opened, matched with the model, split into training and held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from rlinf.config import Config
from rlinf.data.demonstrations import Demonstrations, is_demonstrations, read_demonstrations
from rlinf.data.episodes import EpisodeDataset
from rlinf.data.errors import DatasetError
from rlinf.data.formats import open_dataset
from rlinf.data.layout import DataLayout, configured, observation_layout
from rlinf.data.media import check_media
from rlinf.data.samples import EpisodeSamples, split_episodes
from rlinf.data.text import TextDataset, TextSamples
from rlinf.models.factory import model_config
from rlinf.plugins import get_host


def layout_of(config: Config) -> DataLayout:
    """How the run's model takes samples, with the cameras and keys of the block `data`.

    Raises `DatasetError`, `PluginError`.
    """
    spec = get_host().model_spec(config.model.model_type)
    make = observation_layout if spec.data_layout is None else get_host().resolve(spec, "data_layout")
    layout = make(model_config(config.model))
    if not isinstance(layout, DataLayout):
        raise DatasetError(f"data_layout of {spec.model_type!r} must return a DataLayout, got {layout!r}")
    return configured(layout, config.data.cameras, config.data.state, config.data.action)


def text_columns(config: Config) -> tuple[str, ...]:
    """Columns of the rows that the run's model learns from; none where it learns from episodes."""
    return _TEXT_COLUMNS.get(get_host().model_spec(config.model.model_type).category, ())


#: `ModelSpec.category` -> columns that every row has.
_TEXT_COLUMNS: Final = {"language": ("prompt", "answer"), "reward": ("prompt", "chosen", "rejected")}


def open_datasets(config: Config) -> list[EpisodeDataset]:
    """The datasets of `data.train_data_paths`. Raises `DatasetError`, `PluginError`."""
    contributed = get_host().dataset_formats(config.model.model_type, config.env.env_type)
    data = config.data
    return [open_dataset(path, data.format, contributed) for path in data.train_data_paths]


def open_texts(config: Config) -> list[TextDataset]:
    """The datasets of `data.train_data_paths` for a model that learns from rows. Raises `DatasetError`."""
    return [TextDataset(source, text_columns(config)) for source in config.data.train_data_paths]


def open_rows_or_samples(config: Config, *, held_out: bool = False) -> EpisodeSamples | TextSamples:
    """What the run's model learns from, or what is held out of it. Raises `DatasetError`, `PluginError`."""
    if not text_columns(config):
        return open_samples(config, held_out=held_out)
    datasets = open_texts(config)
    return TextSamples(datasets, _chosen(config, datasets, held_out))


def open_samples(config: Config, *, held_out: bool = False) -> EpisodeSamples:
    """The samples to train on, or those of the held-out episodes. Raises `DatasetError`, `PluginError`."""
    datasets = open_datasets(config)
    return EpisodeSamples(datasets, layout_of(config), _chosen(config, datasets, held_out))


def _chosen(
    config: Config, datasets: Sequence[EpisodeDataset | TextDataset], held_out: bool
) -> list[np.ndarray]:
    """The episodes of each dataset to train on, or those that are held out."""
    data, seed = config.data, config.runner.seed
    return [
        split_episodes(len(dataset.lengths), data.val_fraction, seed, number)[held_out]
        for number, dataset in enumerate(datasets)
    ]


def open_demonstrations(config: Config, folders: Sequence[Path]) -> Demonstrations | None:
    """The folders when all are in the format that the framework's own expert is recorded in, else None.

    Raises `DatasetError`: some are and some are not, or they do not fit the model.
    """
    ours = [is_demonstrations(folder) for folder in folders]
    if not any(ours):
        return None
    if not all(ours):
        other = folders[ours.index(False)]
        raise DatasetError(f"{other}: cannot be mixed with the demonstrations in {folders[ours.index(True)]}")
    for key, value in (("weights", config.data.weights), ("val_fraction", config.data.val_fraction)):
        if value:
            raise DatasetError(f"data.{key}: demonstrations ({folders[0]}) are read whole and alike")
    model = config.model
    return read_demonstrations(folders, chunk=model.num_action_chunks, action_dim=model.action_dim)


def check_data(config: Config) -> list[str]:
    """Open the run's datasets, match them with the model and read a sample of each: what must be right before
    anything expensive starts. Returns a line of text per dataset.

    Raises `DatasetError`, `PluginError`.
    """
    paths = config.data.train_data_paths
    if open_demonstrations(config, [Path(path) for path in paths]) is not None:
        return [f"{path}: demonstrations" for path in paths]
    if text_columns(config):
        texts = open_texts(config)
        # Refuses a split without rows.
        TextSamples(texts, _chosen(config, texts, held_out=config.data.val_fraction > 0))
        for text in texts:
            check_media(text.source, text.rows)
        return [f"{text.source}: {len(text.rows)} rows" for text in texts]
    samples = open_samples(config)
    if config.data.val_fraction:
        open_samples(config, held_out=True)
    lines = []
    first = 0
    for dataset, size in zip(samples.datasets, samples.sizes):
        if size:
            samples.load(np.array([first]))
        first += size
        lines.append(f"{dataset.source}: {len(dataset.lengths)} episodes, {size} samples")
    return lines


def data_identity(config: Config) -> list[str]:
    """What a resumed run compares: the datasets' fingerprints, in order; none for demonstrations, whose
    recording is part of the run."""
    if any(is_demonstrations(Path(path)) for path in config.data.train_data_paths):
        return []
    datasets = open_texts(config) if text_columns(config) else open_datasets(config)
    return [dataset.fingerprint() for dataset in datasets]
