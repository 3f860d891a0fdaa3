"""Where a dataset lies: a local folder as it is, a hub id through huggingface_hub's cache."""

from __future__ import annotations

from pathlib import Path

from rlinf.data.errors import DatasetError


def resolve_source(source: str) -> Path:
    """The folder of a dataset. A hub id is `owner/name` or `owner/name@revision`; what the cache holds is not
    downloaded again, and without a network (or with HF_HUB_OFFLINE=1) the cache is all there is.

    Raises `DatasetError`: no such folder, and nothing of that name on the hub or in the cache.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name, _, revision = source.partition("@")
    if name.count("/") != 1 or source.startswith((".", "/", "~")):
        raise DatasetError(f"{source}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DatasetError(
            f"{source}: there is no such folder, and as a dataset of the hub it is neither in the cache nor "
            f"to be had ({reason})"
        ) from None
