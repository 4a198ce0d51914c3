"""The archive: copies of run and search folders at a URI such as s3://bucket/runs, for when their folder is lost.

Folders have the names there that they have in the storage folder. A checkpoint there is whole once its meta.json is,
which goes up last, after tensors and journal. Only what is not here is brought back, and checked by its own digests.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from dgnet_platform.data.source import climbs_out
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.checkpoint import META, TENSORS, CheckpointError, checkpoints, iteration_of
from dgnet_platform.runs.experiment import Experiment
from dgnet_platform.runs.journal import JOURNAL
from dgnet_platform.storage.files import appearing
from dgnet_platform.storage.remote import RemoteError, check_writable, get, open_place, put, refusal

POLL, RETRY = 5.0, 5.0
"""Seconds between looks at a folder, and before trying again."""
PATIENCE = 30.0
"""Seconds without success after which a folder that will not change any more is given up."""
_PASSING = ("ray", "tune", "stop", "shipping.log")
"""What is not worth keeping, besides hidden files, locks and damaged checkpoints."""

_log = logging.getLogger(__name__)


class Archive:
    """The archive of a storage folder. It is only connected to when it is used."""

    def __init__(self, location: str, storage: Path):
        self.location, self._storage = location, storage

    def check(self) -> None:
        """Check that it can be written; raises RemoteError, which names the remedy."""
        check_writable(self.location)

    def push(self, folder: Path, *, prune: bool = True) -> None:
        """Copy what is new in a folder of the storage folder, and remove checkpoints that were removed here.

        Args:
            folder: of a run or a search.
            prune: remove those older than the newest one here that are not here any more.

        Raises:
            RemoteError: it does not answer, or refuses.
        """
        here = checkpoints(folder)  # before the journal is copied: it has all lines up to these
        with self._named():
            there = self._files(folder)
            for file in _files(folder):
                with suppress(FileNotFoundError):  # removed meanwhile
                    if _is_newer(file, there.get(file.relative_to(folder).as_posix())):
                        put(file, self._filesystem, self._path(file))
            for path in here:
                with suppress(FileNotFoundError):
                    self._push_checkpoint(path, there)
            if prune and here:
                old = {path.split("/")[0] for path in there if path.startswith("checkpoint_")}
                for name in sorted(old - {path.name for path in here}):
                    if iteration_of(name) < iteration_of(here[-1].name):
                        self._remove_checkpoint(folder / name)

    def try_to_push(self, folder: Path, *, prune: bool = True) -> bool:
        """`push`, but failing is only logged; returns whether it worked."""
        try:
            self.push(folder, prune=prune)
        except (OSError, RemoteError) as error:
            _log.warning("%s is not in the archive yet: %s", folder.name, error)
            return False
        return True

    def fetch(self, folder: Path, *, until: int | None = None, with_checkpoints: bool = True) -> bool:
        """Bring back what is in the archive and not here: files, and checkpoints newer than all that are here.

        The journal comes with a checkpoint: it is that of one run, and reaches at least as far.

        Args:
            folder: of a run or a search; made if need be.
            until: only the newest checkpoint that is not later than this iteration; None: all.
            with_checkpoints: checkpoints too.

        Returns:
            Whether there was anything.

        Raises:
            RemoteError: it does not answer, or refuses.
            OSError: the folder cannot be written.
        """
        with self._named():
            there = self._files(folder)
            whole = _whole(there) if with_checkpoints else []
            here = [path.name for path in checkpoints(folder)]
            if until is not None:
                wanted = [name for name in whole if iteration_of(name) <= until][-1:]
            elif whole and (not here or iteration_of(here[-1]) < iteration_of(whole[-1])):
                wanted = whole
            else:
                wanted = []  # others were removed here since
            brought = [name for name in wanted if name not in here and self._fetch_checkpoint(folder / name)]
            files = [name for name in there if not name.startswith("checkpoint_")]
            files = [name for name in files if not (folder / name).exists() or (name == JOURNAL and brought)]
            for name in sorted(files, key=lambda name: (name.endswith(".json"), name)):  # records last
                get(self._filesystem, self._path(folder / name), folder / name)
                os.utime(folder / name, ns=(there[name].mtime_ns,) * 2)  # it is as old as what is there
        return bool(brought or files)

    def try_to_fetch(self, folder: Path) -> None:
        """`fetch`, but failing is only logged."""
        try:
            self.fetch(folder)
        except RemoteError as error:
            _log.warning("%s is not brought back: %s", folder.name, error)

    def nearest(self, folder: Path, until: int) -> Path | None:
        """Where the latest checkpoint not later than `until` would be, of all archived folders in `folder`.

        Raises:
            RemoteError: the archive does not answer, or refuses.
        """
        with self._named():
            found = [Path(name) for name in _whole(self._files(folder)) if iteration_of(name) <= until]
        # The later of folders that have the same: it is complete up to there.
        return folder / max(found, key=lambda path: (path.name, path.parent.name)) if found else None

    # --------------------------------------------------------------------------------------------------------
    # Details

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        return open_place(self.location)

    @property
    def _filesystem(self) -> fs.FileSystem:
        return self._place[0]

    def _path(self, path: Path) -> str:
        """A path of the storage folder in the archive's filesystem."""
        return f"{self._place[1]}/{path.relative_to(self._storage).as_posix()}"

    def _files(self, folder: Path) -> dict[str, fs.FileInfo]:
        """What is in the archive of a folder, by path in it; raises RemoteError for a path that leads out of it."""
        root = self._path(folder)
        found = self._filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
        files = {file.path.removeprefix(f"{root}/"): file for file in found if file.type == fs.FileType.File}
        for name in filter(climbs_out, files):
            raise RemoteError(f"{self.location} holds {name!r}, which leads out of {folder.name}: who wrote it?")
        return files

    def _push_checkpoint(self, path: Path, there: dict[str, fs.FileInfo]) -> None:
        """Copy a checkpoint unless it is there: until its meta.json is, no reader takes it."""
        meta = (path / META).read_bytes()
        if f"{path.name}/{META}" in there:
            with self._filesystem.open_input_stream(self._path(path / META)) as stream:
                if stream.read() == meta:
                    return
            self._filesystem.delete_file(self._path(path / META))
        put(path / TENSORS, self._filesystem, self._path(path / TENSORS))
        put(path / META, self._filesystem, self._path(path / META))

    def _remove_checkpoint(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(path / META))
        self._filesystem.delete_dir(self._path(path))

    def _fetch_checkpoint(self, path: Path) -> bool:
        """Bring a checkpoint here, where it appears at once; returns whether it was as it was written."""
        with appearing(path) as partial:
            for name in (TENSORS, META):
                get(self._filesystem, self._path(path / name), partial / name)
            try:
                checkpoint.verify(partial)
            except CheckpointError as error:
                _log.warning("%s in the archive %s is damaged: %s", path.name, self.location, error)
                shutil.rmtree(partial)
        return path.exists()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Have errors of the archive, not those of local files, name it and the remedy."""
        try:
            yield
        except RemoteError:
            raise
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise refusal(self.location, error) from error


def archive_of(experiment: Experiment) -> Archive | None:
    """The archive that an experiment names."""
    return Archive(experiment.archive, Path(experiment.storage)) if experiment.archive else None


def follow(
    archive: Archive, folder: Path, over: Callable[[], bool], *, prune: bool = True, patience: float = PATIENCE
) -> bool:
    """Push a folder whenever something in it has changed, until it is over and all is there.

    That the archive is away is logged once, and tried again.

    Args:
        archive: where to.
        folder: of a run or a search.
        over: whether it will not change any more.
        prune: as for `push`.
        patience: seconds without success after which a folder that is over is given up.

    Returns:
        Whether all of it is there.
    """
    pushed: object = None
    away, give_up = False, math.inf
    while True:
        last = over()  # before looking: what was written until now is seen
        state = (last, _state(folder))
        if state != pushed:
            try:
                archive.push(folder, prune=prune)
                pushed, away, give_up = state, False, math.inf
            except (OSError, RemoteError) as error:
                if not away:
                    _log.warning("The archive does not take %s, trying again: %s", folder.name, error)
                away = True
                give_up = min(give_up, time.monotonic() + patience) if last else give_up
                if time.monotonic() > give_up:
                    return False
        if last and not away:
            return True
        end = time.monotonic() + (RETRY if away else POLL)
        while time.monotonic() < end and (away or not over()):
            time.sleep(0.1)


def _files(folder: Path) -> list[Path]:
    """Files of a folder that are worth keeping, besides checkpoints; records last."""
    found: list[Path] = []
    for path in folder.iterdir():
        if path.name.startswith((".", "checkpoint_", "damaged_")) or path.name in _PASSING or path.suffix == ".lock":
            continue
        found += [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sorted(found, key=lambda path: (path.suffix == ".json", path))


def _state(folder: Path) -> list[tuple[str, int]]:
    """What tells whether something new is worth a push: not each line of the journal, nor its pictures."""
    found = [file for file in _files(folder) if file.name != JOURNAL and file.suffix != ".png"]
    found += [path / META for path in checkpoints(folder)]
    state = []
    for file in found:
        with suppress(FileNotFoundError):
            state.append((str(file), file.stat().st_mtime_ns))
    return state


def _is_newer(file: Path, there: fs.FileInfo | None) -> bool:
    """Whether a file is not in the archive, or was another one when it was copied."""
    if there is None:
        return True
    stat = file.stat()
    return there.size != stat.st_size or there.mtime_ns < stat.st_mtime_ns


def _whole(there: dict[str, fs.FileInfo]) -> list[str]:
    """Paths of the whole checkpoints among files, oldest first."""
    found = [path.removesuffix(f"/{META}") for path in there if path.endswith(f"/{META}")]
    return sorted((path for path in found if f"{path}/{TENSORS}" in there), key=iteration_of)
