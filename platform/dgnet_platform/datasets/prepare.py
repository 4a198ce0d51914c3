"""Preparing a data set: from a folder, a .zip or a drawing to a store, with a report."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import fs
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dgnet_platform.datasets import READERS, Dataset, read
from dgnet_platform.datasets.decode import no_progress
from dgnet_platform.datasets.pack import pack, publish, staging
from dgnet_platform.datasets.people import People
from dgnet_platform.datasets.people_set import write_market
from dgnet_platform.datasets.records import SPLITS, Problem
from dgnet_platform.datasets.source import Source, open_source
from dgnet_platform.datasets.store import Store, StoreError, StoreInfo
from dgnet_platform.remote import RemoteError, check_writable, open_place, put, refusal

DrawnSize = Literal["tiny", "laptop", "market"]
"""The keys of `people_set.SIZES`, for the command line."""
LISTED_PROBLEMS = 50
"""A report names as many files; a data set in which more are bad has one cause for many of them."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Pack a data set into a store; a source is only ever read."""

    dataset: Dataset
    """Which data set it is; `people` are drawn, `folder` is your own."""
    out: str | Path
    """Folder to be made, the store, or a URI such as s3://bucket/market."""
    source: Path | None = None
    """Folder or .zip of the data set as it was downloaded; none for `people`, which are then drawn."""
    size: DrawnSize | None = None
    """How many people to draw: `tiny` in seconds, `laptop` by default, `market` as many as Market-1501."""
    seed: int | None = None
    """Draws other people; 0 is the default."""
    skip_bad: bool = False
    """Leave out the files with something wrong instead of refusing the set."""
    threads: int = os.cpu_count() or 1
    """Threads that read and decode; the store does not depend on it."""

    def __post_init__(self) -> None:
        drawn = self.dataset == "people" and self.source is None
        if self.source is None and not drawn:
            raise ValueError(f"--dataset {self.dataset} needs --source, its folder or .zip")
        if not drawn and (self.size, self.seed) != (None, None):
            raise ValueError("--size and --seed are for drawing --dataset people: leave them out with --source")
        if self.threads < 1:
            raise ValueError(f"--threads {self.threads}: must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What became of a source."""

    config: PrepareConfig
    info: StoreInfo
    problems: list[Problem]
    ignored: int
    """Files of the source that are no pictures of any split."""
    outcome: Literal["packed", "already packed", "refused"]


def prepare(config: PrepareConfig, progress: Callable[[int, int], None] = no_progress) -> Prepared:
    """Read, verify and pack a data set: `config.out` is then the whole store, or what it was before.

    Args:
        config: What to prepare.
        progress: Called now and then with the number of pictures done and the number there are.

    Raises:
        SourceError: The source cannot be used at all.
        StoreError: `config.out` holds something else, or is being written by another run.
    """
    existing = _existing(config)
    with _source(config, progress) as source, _staging(config.out) as folder:
        listing = read(config.dataset, source)
        info, problems = pack(listing, folder, dataset=config.dataset, threads=config.threads, progress=progress)
        outcome: Literal["packed", "already packed", "refused"] = "packed"
        if problems and not config.skip_bad:
            outcome = "refused"
        elif existing is None:
            _publish(folder, config.out)
        elif existing.info.fingerprint == info.fingerprint:
            existing.verify()
            outcome = "already packed"
        else:
            raise StoreError(
                f"{config.out} holds other pictures of {config.dataset} (fingerprint "
                f"{existing.info.fingerprint[:12]}, this source gives {info.fingerprint[:12]}): name another "
                "--out, or remove it first"
            )
    return Prepared(config=config, info=info, problems=problems, ignored=listing.ignored, outcome=outcome)


def _existing(config: PrepareConfig) -> Store | None:
    """The store that is at `config.out` already; raises StoreError when something else is, or nothing can be there."""
    out, source = config.out, config.source
    if _is_uri(out):
        try:
            filesystem, root = check_writable(str(out))
        except RemoteError as error:
            raise StoreError(str(error)) from None
        if not filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):
            return None
    else:
        out = Path(out)
        if source is not None and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise StoreError(f"{out} is inside the source {source}, which is never written to: name another --out")
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return None
    try:
        store = Store.open(out)
    except StoreError as error:
        raise StoreError(f"{out} exists and is no whole store ({error}): remove it, or name another --out") from None
    if store.info.dataset != config.dataset:
        raise StoreError(f"{out} already holds {store.info.dataset}: name another --out, or remove it first")
    return store


def _is_uri(out: str | Path) -> bool:
    return isinstance(out, str) and "://" in out


@contextmanager
def _staging(out: str | Path) -> Iterator[Path]:
    """An empty folder to pack into: beside a local store, a temporary one before an upload."""
    if not _is_uri(out):
        with staging(Path(out)) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="store-") as temporary:
        yield Path(temporary)


def _publish(folder: Path, out: str | Path) -> None:
    """Make a packed folder the store at `out`. Opening one that is not uploaded to its end is refused."""
    if not _is_uri(out):
        publish(folder, Path(out))
        return
    filesystem, root = open_place(str(out))
    try:
        for file in sorted(folder.iterdir()):
            put(file, filesystem, f"{root}/{file.name}")
    except OSError as error:
        raise StoreError(
            f"{refusal(str(out), error)}; remove what is there, then run the same command again"
        ) from error


@contextmanager
def _source(config: PrepareConfig, progress: Callable[[int, int], None]) -> Iterator[Source]:
    """The source, drawn into a temporary folder where there is none."""
    if config.source is not None:
        with open_source(config.source) as source:
            yield source
        return
    with tempfile.TemporaryDirectory(prefix="drawn-people-") as temporary:
        people, size, folder = People(config.seed or 0), config.size or "laptop", Path(temporary) / "people"
        write_market(people, folder, size, workers=config.threads, progress=progress)
        with open_source(folder) as source:
            yield source


def report(prepared: Prepared) -> RenderableType:
    """Counts beside the published ones, where they differ, and what was wrong, for a terminal."""
    reader, info = READERS[prepared.config.dataset], prepared.info
    table = Table(title=f"{reader.title}, fingerprint {info.fingerprint[:12]}", title_justify="left")
    for column in ("split", "people", "published", "pictures", "published", "cameras"):
        table.add_column(column, justify="left" if column == "split" else "right")
    differences = []
    for split in SPLITS:
        found, published = info.splits.get(split), reader.published.get(split)
        if found is None:
            if published is not None and split != "multi_query":
                differences.append(f"{split} is missing")
            continue
        cells = [f"{found.people:,}", "-", f"{found.pictures:,}", "-", str(found.cameras)]
        if published is not None:
            cells[1], cells[3] = f"{published.people:,}", f"{published.pictures:,}"
            for what in ("people", "pictures"):
                if (more := getattr(found, what) - getattr(published, what)) != 0:
                    differences.append(f"{split} has {abs(more):,} {what} {'more' if more > 0 else 'fewer'}")
        table.add_row(split, *cells)
    lines: list[RenderableType] = [table]
    if differences:
        lines.append(Text(f"Differs from the published set: {'; '.join(differences)}.", style="yellow"))
    elif reader.published:
        lines.append(Text("All counts are the published ones."))
    lines.append(Text(f"{prepared.ignored:,} other files were ignored."))
    for problem in prepared.problems[:LISTED_PROBLEMS]:
        lines.append(Text(printable(f"{problem.file}: {problem.reason}"), style="red"))
    if (more := len(prepared.problems) - LISTED_PROBLEMS) > 0:
        lines.append(Text(f"... and {more:,} more", style="red"))
    return Group(*lines, _verdict(prepared))


def _verdict(prepared: Prepared) -> Text:
    bad = len(prepared.problems)
    if prepared.outcome == "refused":
        text = f"Nothing was written: {bad:,} files are bad. Repair them, or pass --skip-bad."
        return Text(text, style="bold red")
    done = "Packed into" if prepared.outcome == "packed" else "Already prepared:"
    skipped = f", without {bad:,} bad files" if bad else ""
    return Text(f"{done} {printable(str(prepared.config.out))}{skipped}.", style="green")


def printable(text: str) -> str:
    """Text that is safe to show: file names may hold what no terminal should be sent."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
