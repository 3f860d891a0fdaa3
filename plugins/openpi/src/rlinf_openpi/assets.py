"""What a checkpoint's folder holds beside weights: normalisation statistics and the tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlinf.data.stats import NormStats, read_norm_stats

from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import DataConfig
from rlinf_openpi.tokenizer import Encode, find_tokenizer, hashed_words, load_encode

_STATS = "norm_stats.json"


def norm_stats(config: OpenpiConfig, data: DataConfig, model_path: str | None) -> dict[str, NormStats] | None:
    """Statistics of `stats_file`; None where there are none.

    Raises ValueError as `stats_file` does, or naming the file and what it lacks.
    """
    path = stats_file(config, data, model_path)
    if path is None:
        return None
    stats = read_norm_stats(path)
    missing = [name for name in ("state", "actions") if name not in stats]
    if missing:
        raise ValueError(f"normalisation statistics {path} lack {', '.join(missing)}")
    return stats


def stats_file(config: OpenpiConfig, data: DataConfig, model_path: str | None) -> Path | None:
    """The file that `norm_stats_path` names, else the one that the checkpoint brings; None without a
    checkpoint, and where nothing is normalised.

    Raises ValueError when a checkpoint without any needs some.
    """
    if data.normalization == "none":
        return None
    if config.norm_stats_path is not None:
        path = Path(config.norm_stats_path)
        return path / _STATS if path.is_dir() else path
    if model_path is None:
        return None
    folder = Path(model_path) if Path(model_path).is_dir() else Path(model_path).parent
    places = [folder / _STATS]
    if data.asset_id is not None:
        places = [folder / "assets" / data.asset_id / _STATS, folder / data.asset_id / _STATS, *places]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ValueError(
        f"model_path {model_path} brings no normalisation statistics (looked for {looked}): compute them "
        "with `rlinf data stats` and set model.openpi.norm_stats_path"
    )


def encoder(config: OpenpiConfig, model_path: str | None) -> Encode:
    """Text to tokens: by `tokenizer_file`, or by hashed words without one."""
    path = tokenizer_file(config, model_path)
    return hashed_words(config.architecture.vocab_size) if path is None else load_encode(path)


def tokenizer_file(config: OpenpiConfig, model_path: str | None) -> Path | None:
    """The tokenizer that `tokenizer_path` names, else the checkpoint's; None without a checkpoint.

    Raises ValueError when there should be one and is not.
    """
    given = config.tokenizer_path or model_path
    if given is None:
        return None
    found = find_tokenizer(given)
    if found is None and config.tokenizer_path is None:
        found = find_tokenizer(Path(given).parent)
    if found is None:
        raise ValueError(
            f"no tokenizer in {given}: set model.openpi.tokenizer_path to PaliGemma's tokenizer.json or "
            "paligemma_tokenizer.model"
        )
    return found


def copy_assets(config: OpenpiConfig, data: DataConfig, model_path: str | None, folder: Path) -> None:
    """Leave in `folder` what this policy used, so that the weights there can be loaded by its path."""
    stats, tokenizer = stats_file(config, data, model_path), tokenizer_file(config, model_path)
    if stats is not None:
        shutil.copy(stats, folder / _STATS)
    if tokenizer is not None:
        shutil.copy(tokenizer, folder / tokenizer.name)
