"""Prefixes: what trials have in common before their warm-up, trained once and kept for all that start from it.

Before its warm-up starts, a run depends on few of its settings. `<storage>/prefixes/<key>/` is for one choice of those,
`<fork>/` in it a run that ended at that iteration: complete from its first iteration on, with its own journal, pictures
and MLflow run, and never changed again. It starts from the nearest earlier checkpoint of its key; left unfinished and
overtaken by another one, it continues from there. A trial takes journal and checkpoint over into its own folder as
links, so it continues when the prefix is removed.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dgnet_platform.data.store import Store
from dgnet_platform.errors import TrackingError, UserError
from dgnet_platform.runs import checkpoint, journal
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.checkpoint import CheckpointError, checkpoints, iteration_of
from dgnet_platform.runs.experiment import DGNetExperiment, identity_of
from dgnet_platform.runs.journal import JOURNAL
from dgnet_platform.runs.loading import digest_of, keypoints_of
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.runs.run import Outcome, Run, checkpoint_at
from dgnet_platform.search.sharing import prefix_of
from dgnet_platform.storage.files import appearing, lock
from dgnet_platform.storage.remote import RemoteError
from dgnet_platform.storage.serialize import flat, to_dict
from dgnet_platform.tracking.client import TrackedRun, open_run, status_of, uri_of
from dgnet_platform.tracking.shipping import ship

FOLDER = "prefixes"
LOCK = ".lock"

_log = logging.getLogger(__name__)

Say = Callable[[Literal["waits", "trains"], Path, int], None]
"""Told that another trial's prefix is waited for (its key's folder, 0), or which one is trained now (its folder), from
which iteration on."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A prefix that is there."""

    run: Run
    checkpoint: Path
    """At the fork."""


class PrefixError(UserError):
    """A prefix that did not come about: how it ended, and the folder with its journal, if it has begun."""

    def __init__(self, outcome: Outcome, folder: Path | None = None):
        super().__init__(outcome.reason or outcome.ending)
        self.outcome, self.folder = outcome, folder


@contextmanager
def ensure_prefix(
    experiment: DGNetExperiment,
    fork: int,
    *,
    teacher: Path | None,
    tracking_uri: str,
    stop_file: Path,
    fit: Callable[[Run], Outcome],
    say: Say,
) -> Iterator[Prefix]:
    """Find the prefix of a trial, or train it; it is not removed within the context.

    Args:
        experiment: the trial's.
        fork: iteration up to which it is the same as others'.
        teacher: the trial's.
        tracking_uri: MLflow's.
        stop_file: asks a prefix under way to stop.
        fit: trains a run.
        say: is told what takes time.

    Raises:
        PrefixError: it was stopped, or diverged.
        TrackingError: MLflow was away for too long.
    """
    store = Store.open(experiment.data)
    key = key_of(experiment, store.info.fingerprint, teacher, keypoints_of(store, experiment.model))
    folder = Path(experiment.storage) / FOLDER / key / f"{fork:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent, stop_file, lambda: say("waits", folder.parent, 0)):
        path = checkpoint_at(folder, fork)
        if not _whole(path):
            _bring_back(experiment, folder, fork)
        run = Run.find(folder)
        if run is not None and _whole(path) and (folder / JOURNAL).exists():
            os.utime(folder)
            yield Prefix(run=run, checkpoint=path)
            return
        origin = _nearest(folder, fork)
        if origin is not None and origin.parent != folder:
            link_prefix(origin, folder)
        if run is None:
            run = _new_stage(experiment, fork, folder, store, teacher, tracking_uri, origin)
        asked = "data", "storage", "archive", "workers", "gpus", "threads"  # as now, not as when it was begun
        places = {name: getattr(experiment, name) for name in asked}
        run = replace(
            run,
            experiment=replace(run.experiment, **places),
            teacher=str(teacher) if run.teacher else None,
            stop_file=str(stop_file),
        )
        with _track(run, store, tracking_uri) as tracked:
            run = replace(run, tracking_uri=tracked.uri, mlflow_experiment=tracked.experiment, mlflow_run=tracked.id)
            run.save()
            run.forget_stop()
            say("trains", folder, iteration_of(origin.name) if origin is not None else 0)
            outcome = fit(run)
            tracked.close(status_of(outcome.ending), outcome.reason or outcome.ending)
        if outcome.ending != "finished":
            raise PrefixError(outcome, folder)
        yield Prefix(run=run, checkpoint=path)


def _bring_back(experiment: DGNetExperiment, folder: Path, fork: int) -> None:
    """Bring a key's latest checkpoint that is not later than `fork` from the archive, if later than those here."""
    archive = archive_of(experiment)
    if archive is None:
        return
    try:
        found, here = archive.nearest(folder.parent, fork), _nearest(folder, fork)
        if found is not None and (here is None or here.name < found.name):
            archive.fetch(found.parent, until=fork)
    except RemoteError as error:
        _log.warning("Prefixes in the archive are not used: %s", error)


def key_of(experiment: DGNetExperiment, fingerprint: str, teacher: Path | None, keypoints: str | None = None) -> str:
    """Names all that decides an experiment's state and curves before its warm-up.

    Args:
        experiment: the trial's.
        fingerprint: of its store.
        teacher: of its trunk, if it has one.
        keypoints: digest of the store's key points, if they decide which images it sees.
    """
    model = experiment.model
    values = {
        "model": to_dict(prefix_of(model)),
        "data": [fingerprint, keypoints] if keypoints else fingerprint,
        "hold_out": experiment.hold_out,
        "teacher": digest_of(teacher) if model.trunk_from_teacher and teacher is not None else None,
        "evaluate_every": experiment.evaluate_every,
        # Else the same part is trained on any number of workers: equal to rounding, and to the bit on as many.
        "ranks": None if model.batch_norm == "synchronised" else max(1, experiment.most_workers),
        "code": [training_digest(), checkpoint.FORMAT],
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def catch_up(run: Run) -> None:
    """Tell MLflow what it missed of a prefix that was finished while it was away."""
    assert run.until is not None
    if checkpoint_at(run.folder, run.until).exists() and ship(run, lambda: True, patience=0):
        TrackedRun.of(run).close("FINISHED")


def link_prefix(path: Path, folder: Path) -> None:
    """Make a run's folder that of a run that came to a checkpoint: its journal, pictures and checkpoint are linked.

    Raises:
        OSError: it cannot be written.
    """
    source, iteration = path.parent, iteration_of(path.name)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in journal.read(source):
        for file in entry.pictures.values() if entry.iteration <= iteration else ():
            if (source / file).exists():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                _link(source / file, folder / file)
    journal.copy(source / JOURNAL, folder / JOURNAL, iteration)
    with appearing(folder / path.name, flushed=False) as partial:  # last: a run with a checkpoint has all before it
        partial.mkdir()
        for file in path.iterdir():
            _link(file, partial / file.name)


def collect(storage: Path, limit: int) -> list[Path]:
    """Remove prefixes, the one longest unused first, until those that are left take no more than `limit` bytes.

    Those of a key that is being trained or waited for stay. Trials that started from a prefix have what they need.

    Returns:
        What was removed.
    """
    for gone in (storage / FOLDER).glob("*/.*.gone/"):  # killed while it was removed
        shutil.rmtree(gone, ignore_errors=True)
    used: dict[Path, float] = {}
    for stage in (storage / FOLDER).glob("*/[0-9]*/"):
        with suppress(FileNotFoundError):  # another search removed it meanwhile
            used[stage] = stage.stat().st_mtime
    sizes = {stage: _bytes(stage) for stage in used}
    total, removed = sum(sizes.values()), []
    for stage in sorted(used, key=lambda stage: used[stage]):
        if total <= limit:
            break
        with (stage.parent / LOCK).open("w") as file:
            try:
                lock(file, wait=False)
            except BlockingIOError:
                continue
            if stage.exists():
                gone = stage.with_name(f".{stage.name}.gone")  # at once: half a prefix would be taken for whole
                shutil.rmtree(gone, ignore_errors=True)
                stage.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
                removed.append(stage)
        total -= sizes[stage]
    return removed


def _new_stage(
    experiment: DGNetExperiment,
    fork: int,
    folder: Path,
    store: Store,
    teacher: Path | None,
    tracking_uri: str,
    origin: Path | None,
) -> Run:
    """The run that trains up to `fork`; it is not tracked yet."""
    model = prefix_of(experiment.model)
    teacher = teacher if model.needs_teacher else None
    experiment = replace(experiment, model=model, name=folder.name, evaluate_also=())
    identity = identity_of(
        experiment,
        dataset=store.info.dataset,
        fingerprint=store.info.fingerprint,
        keypoints=keypoints_of(store, experiment.model),
        teacher=digest_of(teacher) if teacher else None,
        origin=None,
    )
    return Run(
        folder=folder,
        experiment=experiment,
        identity=identity.values(),
        teacher=str(teacher) if teacher else None,
        origin=str(origin) if origin else None,
        tracking_uri=tracking_uri,
        mlflow_experiment="",
        mlflow_run="",
        evaluated_at_end=False,
        keeps_all=True,
        until=fork,
        code=training_digest(),
    )


def _track(run: Run, store: Store, tracking_uri: str) -> TrackedRun:
    """A prefix's run in MLflow; raises PrefixError if asked to stop while MLflow was away."""
    stop_file = Path(run.stop_file or "")
    try:
        return open_run(
            uri_of(run, tracking_uri) if run.mlflow_run else tracking_uri,
            store,
            name=f"prefix-{run.folder.parent.name[:8]}-{run.until}",
            folder=run.folder,
            params=flat(to_dict(run.experiment)) | {"fork": run.until},
            tags={"dgnet.kind": "prefix", "dgnet.origin": run.origin or ""},
            known=run.mlflow_run or None,
            stop_asked=stop_file.exists,
        )
    except TrackingError:
        if stop_file.exists():
            raise PrefixError(Outcome(ending="stopped", iteration=0)) from None
        raise


def _nearest(folder: Path, fork: int) -> Path | None:
    """A prefix's own newest whole checkpoint, or the latest one of its key that is later, but not later than `fork`."""
    own = checkpoint.newest(folder)  # sets damaged ones aside
    start = iteration_of(own.name) if own is not None else 0
    later = [path for stage in folder.parent.glob("[0-9]*/") for path in checkpoints(stage)]
    later = [path for path in later if start < iteration_of(path.name) <= fork]
    return next(filter(_whole, sorted(later, key=lambda path: path.name, reverse=True)), own)


def _whole(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except CheckpointError:
        return False
    return True


@contextmanager
def _locked(key: Path, stop_file: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Only one trial at a time trains a key's prefixes, on whichever machine.

    Raises:
        PrefixError: asked to stop while another one trains.
    """
    told = False
    with (key / LOCK).open("w") as file:
        while True:
            try:
                lock(file, wait=False)
                break
            except BlockingIOError:
                if stop_file.exists():
                    raise PrefixError(Outcome(ending="stopped", iteration=0)) from None
                if not told:
                    wait()
                told = True
                time.sleep(0.5)
        yield


def _link(source: Path, target: Path) -> None:
    """A second name of a file that never changes, or a copy where there can be none."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _bytes(folder: Path) -> int:
    """Of what is in a folder; others may write there meanwhile."""
    size = 0
    for above, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(above, file), follow_symlinks=False).st_size  # noqa: PTH116, PTH118
    return size
