"""Which formats there are, and opening a dataset by name of its format or by looking at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from rlinf.data.episodes import EpisodeDataset, EpisodeWriter
from rlinf.data.errors import DatasetError
from rlinf.plugins import DatasetFormatSpec, PluginError, get_host, resolve_attr

#: `data.format` when the dataset itself shall tell.
AUTO: Final = "auto"
#: The core's own formats.
BUILTIN: Final[tuple[DatasetFormatSpec, ...]] = (
    DatasetFormatSpec(
        name="lerobot",
        reader="rlinf.data.lerobot.reader:open_dataset",
        writer="rlinf.data.lerobot.writer:WriterV30",
        matches="rlinf.data.lerobot:is_lerobot",
        description="LeRobot: reads v2.0, v2.1 and v3.0, writes v3.0",
    ),
    DatasetFormatSpec(
        name="lerobot_v21",
        reader="rlinf.data.lerobot.reader:open_dataset",
        writer="rlinf.data.lerobot.writer:WriterV21",
        description="LeRobot v2.1",
    ),
)


def all_formats(contributed: Iterable[DatasetFormatSpec] = ()) -> dict[str, DatasetFormatSpec]:
    """Name -> format, of the core and of the run's plugins (`PluginHost.dataset_formats`).

    Raises `DatasetError` where two that differ have one name.
    """
    formats: dict[str, DatasetFormatSpec] = {}
    for spec in (*BUILTIN, *contributed):
        if formats.setdefault(spec.name, spec) != spec:
            raise DatasetError(
                f"two dataset formats are called {spec.name!r}: {formats[spec.name].reader} and {spec.reader}"
            )
    return formats


def installed_formats() -> list[DatasetFormatSpec]:
    """Formats of all installed plugins: here no run says which take part. A broken one costs a warning."""
    host = get_host()
    found: list[DatasetFormatSpec] = []
    for row in host.discover():
        if row.state != "ok":
            continue
        try:
            found += [spec for spec in host.formats_of(host.load(row)) if spec not in found]
        except PluginError as error:
            host.warn(str(error))
    return found


def writer_of(
    format_name: str, contributed: Iterable[DatasetFormatSpec], option: str
) -> Callable[..., EpisodeWriter]:
    """`f(folder, features, *, fps)` of a format. Raises `DatasetError` naming the command line's `option`."""
    formats = all_formats(contributed)
    spec = formats.get(format_name)
    if spec is None or spec.writer is None:
        writable = ", ".join(sorted(name for name, one in formats.items() if one.writer is not None))
        raise DatasetError(
            f"{option}: {format_name!r} is no format that can be written; these are: {writable}"
        )
    return resolve_attr(spec.writer, of=f"DatasetFormatSpec.writer of {spec.name!r}")


def open_dataset(
    source: str, format_name: str = AUTO, contributed: Iterable[DatasetFormatSpec] = ()
) -> EpisodeDataset:
    """Open `source`, a path or what the format's reader takes else.

    Raises:
        DatasetError: no such format, none that fits, or the reader refuses the dataset.
    """
    formats = all_formats(contributed)
    spec = formats.get(format_name)
    if spec is None and format_name != AUTO:
        known = ", ".join([AUTO, *sorted(formats)])
        raise DatasetError(
            f"data.format: there is no format {format_name!r}; known: {known}. A format of a plugin is known "
            "in runs with that plugin (as model, as environment, or named in plugins.load)"
        )
    if spec is None:
        spec = _detect(source, formats)
    reader = resolve_attr(spec.reader, of=f"DatasetFormatSpec.reader of {spec.name!r}")
    return reader(source)


def _detect(source: str, formats: dict[str, DatasetFormatSpec]) -> DatasetFormatSpec:
    path = Path(source)
    if not path.exists():
        hub = formats.get("lerobot")
        if hub is not None and source.count("/") == 1 and not source.startswith((".", "/", "~")):
            return hub
        raise DatasetError(f"{source}: there is no such file or folder")
    for spec in formats.values():
        of = f"DatasetFormatSpec.matches of {spec.name!r}"
        if spec.matches is not None and resolve_attr(spec.matches, of=of)(path):
            return spec
    raise DatasetError(
        f"{source}: looks like none of the formats {', '.join(sorted(formats))}; if it is one of them all "
        "the same, name it in data.format"
    )
