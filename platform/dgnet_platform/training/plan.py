"""What a training command comes down to, and whether it can be run as asked."""

import os
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dgnet_core.learning.batches import share
from dgnet_core.learning.config import LEAST_LOCAL, MethodConfig
from dgnet_core.methods import build, method_of
from dgnet_platform.data.held_out import check_held_out, needed_classes
from dgnet_platform.data.records import JUNK
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.results import JSON
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.checkpoint import CheckpointError
from dgnet_platform.runs.experiment import AnyExperiment, Identity, TaughtExperiment, identity_of
from dgnet_platform.runs.loading import describe_teacher, digest_of, keypoints_of
from dgnet_platform.runs.run import RESULTS, Outcome, Run, absolute, folder_of
from dgnet_platform.runs.tracking_uri import usable
from dgnet_platform.storage.files import resolved
from dgnet_platform.storage.serialize import differences, to_dict


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """Which run an experiment is: all that decides its result, and its folder."""

    experiment: AnyExperiment
    """With locations that hold everywhere, and the run's name."""
    store: Store
    identity: Identity
    folder: Path
    teacher: Path | None
    origin: Path | None
    """The checkpoint that a new run starts from."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(NamedRun):
    """What a command will do."""

    existing: Run | None
    """The run that will be resumed; None: a new one."""
    outcome: Outcome | None
    """How the run ended, if it is trained and evaluated; None: there is something to do."""

    @property
    def evaluated_at_end(self) -> bool:
        """Whether the store has what a finished run is evaluated on; training needs neither."""
        return {"query", "gallery"} <= self.store.info.splits.keys()


def name_run(
    experiment: AnyExperiment, *, teacher: Path | None, origin: Path | None = None, store: Store | None = None
) -> NamedRun:
    """Find out which run an experiment is; changes nothing, and does not look into the run's folder.

    Args:
        experiment: what to train.
        teacher: the checkpoint, or the release's file, that labels generated images.
        origin: a checkpoint that a new run starts from, with its iteration and optimisers; its settings may be others.
        store: the experiment's, if it is open.

    Raises:
        ExperimentError, StoreError, PoseError, CheckpointError: it cannot be trained as asked.
    """
    store = store or Store.open(experiment.data)
    experiment = replace(
        experiment,
        data=absolute(experiment.data),
        storage=absolute(experiment.storage),
        archive=absolute(experiment.archive),
        tracking_uri=usable(experiment.tracking_uri),
    )
    _check_data(experiment, store)
    check_learns(experiment.model)
    if origin is not None and not origin.exists():
        raise ExperimentError(
            f"--resume-from {origin} does not exist; a run that was begun from it resumes by its --name, without this"
        )
    identity = identity_of(
        experiment,
        dataset=store.info.dataset,
        fingerprint=store.info.fingerprint,
        keypoints=keypoints_of(store, experiment.model),
        teacher=None if teacher is None else _checked_teacher(teacher, experiment.model.num_classes, store),
        origin=None if origin is None else digest_of(origin),
    )
    folder = folder_of(experiment.storage, experiment.name or identity.name)
    return NamedRun(
        experiment=replace(experiment, name=folder.name),
        store=store,
        identity=identity,
        folder=folder,
        teacher=teacher,
        origin=origin,
    )


def make_plan(named: NamedRun) -> TrainingPlan:
    """Find out what is left to do of a run; changes nothing.

    Raises:
        ExperimentError: the run exists and has other settings, or cannot start from its origin.
        CheckpointError: the origin is missing or damaged.
    """
    existing, origin = Run.find(named.folder), named.origin
    outcome = None
    if existing is not None:
        _check_same(existing, named)
        outcome = outcome_of_finished(existing)
        if outcome is None:
            _check_workers(existing, named.experiment)
        origin = Path(existing.origin) if existing.origin else None
    elif origin is not None:
        _check_origin(origin, named.experiment)
    return TrainingPlan(**vars(named) | {"origin": origin, "existing": existing, "outcome": outcome})


def check_storage(named: NamedRun) -> None:
    """Make a run's folder, and check that it and the archive can be written.

    Raises:
        ExperimentError: names the folder.
        RemoteError: names the archive.
    """
    archive = archive_of(named.experiment)
    if archive is not None:
        archive.check()
    try:
        named.folder.mkdir(parents=True, exist_ok=True)
        probe = named.folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ExperimentError(f"--storage: {named.folder} cannot be written ({error}): name another folder") from None


def check_room(plan: TrainingPlan) -> None:
    """Check that a run's folder holds the checkpoints that the run will keep; a finished one needs no more.

    Raises:
        ExperimentError: names the folder, and how much is missing.
    """
    if plan.outcome is None:
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
    """About how large a checkpoint is: parameters, their averages, and what optimisers remember of each."""
    with torch.device("meta"):
        state = build(config.portable(), "meta", pretrained=False)
    moments = {torch.optim.SGD: 1, torch.optim.Adam: 2, torch.optim.AdamW: 2}
    size = sum(parameter.nbytes for average in state.averages.values() for parameter in average.parameters())
    for optimizer in state.optimizers.values():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        size += (1 + moments[type(optimizer)]) * sum(parameter.nbytes for parameter in parameters)
    return size


def named_teacher(experiment: TaughtExperiment[MethodConfig]) -> Path | None:
    """The teacher that an experiment names, or None for `auto`."""
    return None if experiment.teacher == "auto" else resolved(experiment.teacher)


def outcome_of_finished(run: Run) -> Outcome | None:
    """How a run ended that is trained and evaluated; None: there is something to do."""
    last = run.experiment.model.iterations
    try:
        checkpoint.verify(run.last_checkpoint)
    except CheckpointError:
        return None
    evaluated = (run.folder / RESULTS / JSON).exists() or not run.evaluated_at_end
    return Outcome(ending="finished", iteration=last) if evaluated else None


# ------------------------------------------------------------------------------------------------------------
# What is refused


def check_learns(model: MethodConfig) -> None:
    """Refuse settings by which a run's networks could not learn; raises ExperimentError."""
    try:
        method_of(model).check(model)
    except ValueError as error:
        raise ExperimentError(str(error)) from None


def check_shares(model: MethodConfig, numbers: range, option: str) -> None:
    """Refuse workers among whom a batch cannot be shared, or only so that local BatchNorm learns nothing.

    Args:
        model: of the run.
        numbers: of workers that it may get; 0: its own process trains.
        option: asks for them.

    Raises:
        ExperimentError: names the option.
    """
    for workers in (max(1, number) for number in numbers):
        try:
            share(model.batch_size, 0, workers)
        except ValueError as error:
            raise ExperimentError(f"{option}: {error}") from None
        fewest = model.batch_size // workers
        if model.batch_norm == "local" and workers > 1 and fewest < LEAST_LOCAL:
            raise ExperimentError(
                f"{option}: with batch_norm local, {workers} workers of a batch of {model.batch_size} normalise over"
                f" {fewest} {'image' if fewest == 1 else 'images'} each, from which nothing is learned: leave it"
                f" synchronised, use at most {max(1, model.batch_size // LEAST_LOCAL)} workers, or say local_any_size"
            )


def _checked_teacher(path: Path, classes: int, store: Store) -> str:
    """A teacher's digest; one that is damaged or knows other identities is refused."""
    digest, known = describe_teacher(path)
    if known != classes:
        raise ExperimentError(
            f"teacher {path} knows {known} identities, {store.location} has {classes} to train on: name one that was"
            " trained on the same data, or use --teacher auto"
        )
    return digest


def _check_same(existing: Run, named: NamedRun) -> None:
    """Refuse to resume a run with other settings."""
    changed = differences(existing.identity, named.identity.values())
    if named.origin is None:
        changed.pop("origin", None)  # a run that was begun from a checkpoint has it by now
    if not changed:
        return
    listed = "\n".join(f"  {path}: {before!r} -> {after!r}" for path, (before, after) in changed.items())
    newest = checkpoint.newest(existing.folder, set_aside=False)
    start = f"--resume-from {shlex.quote(str(newest))} to start a new one from there, or " if newest is not None else ""
    raise ExperimentError(
        f"run {existing.name} exists and has other settings:\n{listed}\n"
        f"Pass {start}nothing but these settings to start from scratch, both with another --name or none"
    )


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
    begun = [sum(start < meta.iteration for start in config.later_stages) for config in (meta.config, model)]
    if begun[0] != begun[1]:  # what begins a stage would be left out, or done again
        raise ExperimentError(
            f"{refusal}at {meta.iteration:,} iterations it is in stage {begun[0] + 1}, the run in stage {begun[1] + 1}:"
            " keep the length of its stages, or name a checkpoint from before"
        )
    kinds = [getattr(getattr(config, "optim", config), "optimizer", None) for config in (meta.config, model)]
    if kinds[0] != kinds[1]:  # what one optimiser remembers, another cannot use
        raise ExperimentError(f"{refusal}it was trained by {kinds[0]}, the run by {kinds[1]}: keep the optimizer")
    changed = differences(to_dict(meta.config.network), to_dict(model.network))
    changed.pop("pretrained", None)
    if meta.config.num_classes != model.num_classes:
        changed["num_classes"] = meta.config.num_classes, model.num_classes
    if changed:
        listed = "\n".join(f"  {path}: {before!r} -> {after!r}" for path, (before, after) in changed.items())
        raise ExperimentError(f"{refusal}its network is another one:\n{listed}")


def _check_workers(existing: Run, experiment: AnyExperiment) -> None:
    """Refuse to share a run's batches among another number of workers where BatchNorm makes another run of it."""
    before = existing.experiment
    if experiment.model.batch_norm == "synchronised":
        return
    same = max(1, before.most_workers) == max(1, experiment.most_workers)
    if not (same or before.elastic or experiment.elastic):
        raise ExperimentError(
            f"run {existing.name} was begun with --workers {before.workers}; with {experiment.workers}, BatchNorm would"
            f" see other batches: pass --workers {before.workers}, a range such as 1:{max(1, before.most_workers)} if"
            " that may be, or another --name to start from scratch"
        )


def _check_data(experiment: AnyExperiment, store: Store) -> None:
    method = method_of(experiment.model)
    if method.posed:
        _check_pairs(method.title, store)
    if not method.unlabelled:
        _check_labelled(method.title, store)
    classes = needed_classes(store, experiment.hold_out)
    if classes != experiment.model.num_classes:
        raise ExperimentError(
            f"model.num_classes is {experiment.model.num_classes}, {store.location} has {classes} identities to train"
            f" on{' (others are held out)' if experiment.hold_out else ''}: leave it out"
        )
    if experiment.hold_out:
        check_held_out(store)
    numbers = range(experiment.fewest_workers, experiment.most_workers + 1)
    check_shares(experiment.model, numbers, f"--workers {experiment.workers}")


def _check_labelled(title: str, store: Store) -> None:
    """Refuse training pictures without identity for methods that do not learn these."""
    pictures = store.index("train")["person_id"].tolist().count(JUNK) if "train" in store.info.splits else 0
    if pictures:
        raise ExperimentError(
            f"{title} needs identities, but {pictures:,} training pictures of {store.location} are of person -1:"
            " prepare the data without --unlabelled"
        )


def _check_pairs(title: str, store: Store) -> None:
    """Refuse training identities of which there are no two pictures to make a pair."""
    counts = Counter(store.index("train")["person_id"].tolist())
    alone = sorted(person for person, pictures in counts.items() if pictures < 2)
    if alone:
        named = ", ".join(map(str, alone[:3])) + (", ..." if len(alone) > 3 else "")
        raise ExperimentError(
            f"{title} trains on pairs of pictures of one person, but {len(alone):,} of {len(counts):,} training"
            f" identities of {store.location} have one picture ({named}): prepare the data without them"
        )
