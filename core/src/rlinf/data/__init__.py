"""Trajectories, datasets of episodes, and how they become a model's batches."""

from rlinf.data.episodes import EpisodeDataset, EpisodeWriter, Feature
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.layout import DataLayout, Sample

__all__ = [
    "DataLayout",
    "DatasetError",
    "EpisodeDataset",
    "EpisodeError",
    "EpisodeWriter",
    "Feature",
    "Sample",
]
