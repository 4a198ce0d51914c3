"""What a training command comes down to, and whether it can be run as asked."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dgnet_core.learning.batches import share
from dgnet_core.learning.config import MethodConfig
from dgnet_core.methods import build, method_of
from dgnet_platform.data.held_out import needed_classes
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.results import JSON
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.checkpoint import CheckpointError
from dgnet_platform.runs.experiment import AnyExperiment, Identity, TaughtExperiment, identity_of
from dgnet_platform.runs.loading import digest_of, open_teacher
from dgnet_platform.runs.run import RESULTS, Outcome, Run, absolute, folder_of
from dgnet_platform.runs.tracking_uri import usable
from dgnet_platform.storage.serialize import differences, to_dict


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a command will do."""

    experiment: AnyExperiment
    store: Store
    identity: Identity
    folder: Path
    teacher: Path | None
    origin: Path | None
    existing: Run | None
    """The run that will be gone on with; None: a new one."""


def make_plan(
    experiment: AnyExperiment, *, teacher: Path | None, origin: Path | None = None, fork: bool = False
) -> TrainingPlan:
    """Find out what an experiment comes down to; changes nothing. Arguments and errors as for `train`."""
    store = Store.open(experiment.data)
    experiment = replace(
        experiment,
        data=absolute(experiment.data),
        storage=absolute(experiment.storage),
        archive=absolute(experiment.archive),
        tracking_uri=usable(experiment.tracking_uri),
    )
    _check_data(experiment, store)
    digest = None
    if teacher is not None:
        known = open_teacher(teacher).config.num_classes
        if known != experiment.model.num_classes:
            raise ExperimentError(
                f"teacher {teacher} knows {known} identities, {store.location} has {experiment.model.num_classes} to"
                " train on: name one that was trained on the same data, or use --teacher auto"
            )
        digest = digest_of(teacher)

    def named(origin: Path | None, name: str) -> tuple[Identity, Path]:
        identity = identity_of(
            experiment,
            dataset=store.info.dataset,
            fingerprint=store.info.fingerprint,
            teacher=digest,
            origin=None if origin is None else digest_of(origin),
        )
        return identity, folder_of(experiment.storage, name or identity.name)

    if origin is not None and not origin.exists():
        raise ExperimentError(
            f"--resume-from {origin} does not exist; a run that was begun from it goes on by its --name, without this"
        )
    identity, folder = named(origin, experiment.name)
    existing = Run.find(folder)
    changed = {} if existing is None else differences(existing.identity, identity.values())
    if origin is None:
        changed.pop("origin", None)  # a run that was begun from a checkpoint has it by now
    if existing is not None and changed:
        listed = "\n".join(f"  {path}: {before!r} -> {after!r}" for path, (before, after) in changed.items())
        if not fork:
            raise ExperimentError(
                f"run {existing.name} exists and has other settings:\n{listed}\n"
                "Pass --fork to start a new run from its newest checkpoint, or another --name to start from scratch"
            )
        origin = checkpoint.newest(folder, set_aside=False)
        if origin is None:
            raise ExperimentError(f"run {existing.name} has no checkpoint to fork from: pass another --name")
        identity, _ = named(origin, "")
        _, folder = named(origin, f"{existing.name}-{identity.name[-8:]}")
        existing = Run.find(folder)
    if existing is None and origin is not None:
        _check_origin(origin, experiment)
    if existing is not None and outcome_of_finished(existing) is None:
        _check_workers(existing, experiment)
    return TrainingPlan(
        experiment=replace(experiment, name=folder.name),
        store=store,
        identity=identity,
        folder=folder,
        teacher=teacher,
        origin=origin if existing is None else Path(existing.origin) if existing.origin else None,
        existing=existing,
    )


def check_storage(plan: TrainingPlan) -> None:
    """Check that a run's folder and archive can be written, and that the folder holds what the run will keep.

    Raises:
        ExperimentError: names the folder, and how much is missing.
        RemoteError: names the archive.
    """
    archive = archive_of(plan.experiment)
    if archive is not None:
        archive.check()
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        probe = plan.folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ExperimentError(f"--storage: {plan.folder} cannot be written ({error}): name another folder") from None
    if plan.existing is not None and outcome_of_finished(plan.existing) is not None:
        return
    here = len(checkpoint.checkpoints(plan.folder))
    check_free(plan.folder, plan.experiment.model, max(1, plan.experiment.keep + 2 - here))  # the best, a half one


def check_free(folder: Path, config: MethodConfig, count: int) -> None:
    """Check that a folder has room for so many checkpoints.

    Raises:
        ExperimentError: names the folder, and how much is missing.
    """
    needed, free = checkpoint_bytes(config) * count, shutil.disk_usage(folder).free
    if free < needed:
        raise ExperimentError(
            f"--storage: {folder} has {free / 2**30:.1f} GiB free, {count} checkpoints take {needed / 2**30:.1f} GiB:"
            " make room, or name another folder"
        )


def checkpoint_bytes(config: MethodConfig) -> int:
    """About how large a checkpoint is: parameters, and what their optimisers remember of each."""
    with torch.device("meta"):
        state = build(config, "meta", pretrained=False)
    moments = {torch.optim.SGD: 1, torch.optim.Adam: 2}
    size = 0
    for optimizer in state.optimizers.values():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        size += (1 + moments[type(optimizer)]) * sum(parameter.nbytes for parameter in parameters)
    return size


def named_teacher(experiment: TaughtExperiment[MethodConfig]) -> Path | None:
    """The teacher that an experiment names, or None for `auto`."""
    return None if experiment.teacher == "auto" else Path(experiment.teacher).expanduser().resolve()


def outcome_of_finished(run: Run) -> Outcome | None:
    """How a run ended that is trained and evaluated; None: there is something to do."""
    last = run.experiment.model.iterations
    try:
        checkpoint.verify(run.folder / f"checkpoint_{last:08d}")
    except CheckpointError:
        return None
    return Outcome(ending="finished", iteration=last) if (run.folder / RESULTS / JSON).exists() else None


# ------------------------------------------------------------------------------------------------------------
# What is refused


def _check_origin(origin: Path, experiment: AnyExperiment) -> None:
    """Refuse a checkpoint that a run cannot start from."""
    checkpoint.verify(origin)
    meta, model = checkpoint.read_meta(origin), experiment.model
    refusal = f"a run cannot start from {origin}: "
    before, method = method_of(meta.config).name, method_of(model).name
    if before != method:
        raise ExperimentError(f"{refusal}it is of a {before}, the run of a {method}")
    if meta.iteration >= model.iterations:
        raise ExperimentError(
            f"{refusal}it has {meta.iteration:,} iterations done, the run ends after {model.iterations:,}: name an"
            " earlier one, or more --iterations"
        )
    before = replace(meta.config.network, pretrained=model.network.pretrained)
    changed = differences(to_dict(before), to_dict(model.network))
    if meta.config.num_classes != model.num_classes:
        changed["num_classes"] = meta.config.num_classes, model.num_classes
    if changed:
        listed = "\n".join(f"  {path}: {before!r} -> {after!r}" for path, (before, after) in changed.items())
        raise ExperimentError(f"{refusal}its network is another one:\n{listed}")


def _check_workers(existing: Run, experiment: AnyExperiment) -> None:
    """Refuse to share a run's batches among another number of workers: BatchNorm makes another run of it."""
    before = existing.experiment
    same = max(1, before.most_workers) == max(1, experiment.most_workers)
    if not (same or before.elastic or experiment.elastic):
        raise ExperimentError(
            f"run {existing.name} was begun with --workers {before.workers}; with {experiment.workers}, BatchNorm would"
            f" see other batches: pass --workers {before.workers}, a range such as 1:{max(1, before.most_workers)} if"
            " that may be, or another --name to start from scratch"
        )


def _check_data(experiment: AnyExperiment, store: Store) -> None:
    classes = needed_classes(store, experiment.hold_out)
    if classes != experiment.model.num_classes:
        raise ExperimentError(
            f"model.num_classes is {experiment.model.num_classes}, {store.location} has {classes} identities to train"
            f" on{' (others are held out)' if experiment.hold_out else ''}: leave it out"
        )
    for split in ("query", "gallery"):
        if split not in store.info.splits:
            raise ExperimentError(f"{store.location} has no {split}, which the finished run is evaluated on")
    for workers in range(max(1, experiment.fewest_workers), max(1, experiment.most_workers) + 1):
        try:
            share(experiment.model.batch_size, 0, workers)
        except ValueError as error:
            raise ExperimentError(f"--workers {experiment.workers}: {error}") from None
