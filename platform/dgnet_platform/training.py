"""A training run from its experiment to its results, as the driver sees it: check, track, launch, watch, publish."""

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from mlflow import MlflowClient
from ray.train import TrainingFailedError
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from dgnet_core.sampling import share
from dgnet_platform import checkpoint, launch, tracking
from dgnet_platform.archive import archive_of
from dgnet_platform.checkpoint import CheckpointError, ModelConfig, kind_of
from dgnet_platform.datasets.cache import kept_here
from dgnet_platform.datasets.images import held_out_people
from dgnet_platform.datasets.store import Store
from dgnet_platform.display import Display
from dgnet_platform.experiment import (
    AnyExperiment,
    DGNetExperiment,
    ExperimentError,
    Identity,
    TeacherExperiment,
    differences,
    flat,
    identity_of,
)
from dgnet_platform.foreground import alone, elsewhere, stopping
from dgnet_platform.plain import to_dict
from dgnet_platform.presets import teacher_of
from dgnet_platform.publishing import publish
from dgnet_platform.results import JSON
from dgnet_platform.run import RESULTS, Run, folder_of
from dgnet_platform.shipping import ship
from dgnet_platform.trained import digest_of, open_teacher
from dgnet_platform.version import code_version
from dgnet_platform.worker import Outcome


class TrainingError(RuntimeError):
    """Training failed on the way; the message says why. What was saved stays."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a run stands after this command."""

    run: Run
    outcome: Outcome
    model_uri: str | None = None
    """Of the published model; None: it is not finished, or MLflow was away."""

    @property
    def checkpoint(self) -> Path:
        """The run's last checkpoint."""
        return self.run.folder / f"checkpoint_{self.run.experiment.model.iterations:08d}"

    @property
    def results(self) -> Path:
        """Folder of the final evaluation."""
        return self.run.folder / RESULTS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command will do."""

    experiment: AnyExperiment
    store: Store
    identity: Identity
    folder: Path
    teacher: Path | None
    origin: Path | None
    existing: Run | None
    """The run that will be gone on with; None: a new one."""


def train(
    experiment: AnyExperiment,
    *,
    console: Console,
    origin: Path | None = None,
    fork: bool = False,
    register: str | None = None,
) -> Trained:
    """Train, or go on with, the run that an experiment describes; a finished one is only looked at.

    Args:
        experiment: what to train. DG-Net's teacher `auto` is trained first.
        console: where progress is shown.
        origin: a checkpoint that a new run starts from.
        fork: if the run of that name has other settings, start a new one from its newest checkpoint.
        register: publish the finished model in MLflow's registry under this name.

    Raises:
        ExperimentError, StoreError, CheckpointError, TrackingError: it cannot be run as asked; nothing was begun.
        TrainingError: a worker failed more often than it may, or a loss was not finite.

    Returns:
        How the run stands, or its teacher, if that was stopped.
    """
    teacher = _train_teacher(experiment, console)
    if isinstance(teacher, Trained):
        return teacher  # stopped before it was finished
    while True:
        plan = make_plan(experiment, teacher=teacher, origin=origin, fork=fork)
        check_storage(plan)
        with alone(plan.folder):
            if _bring_back(plan, console):
                continue  # now there is a run to go on with, or to fork from
            connected, run = _track(plan)
            outcome = _outcome_of_finished(run)
            if outcome is None:
                _bring_store(plan, console)
                outcome = _launch(connected, run, console)
            return _end(connected, run, outcome, register, console)


def make_plan(
    experiment: AnyExperiment, *, teacher: Path | None, origin: Path | None = None, fork: bool = False
) -> Plan:
    """Find out what an experiment comes down to; changes nothing. Arguments and errors as for `train`."""
    store = Store.open(experiment.data)
    experiment = replace(
        experiment,
        data=absolute(experiment.data),
        storage=absolute(experiment.storage),
        archive=absolute(experiment.archive),
        tracking_uri=tracking.usable(experiment.tracking_uri),
    )
    _check_data(experiment, store)
    digest = None
    if teacher is not None:
        known = open_teacher(teacher).teacher.head.classifier.out_features
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

    identity, folder = named(origin, experiment.name)
    existing = Run.find(folder)
    if existing is not None and existing.identity != identity.values():
        changed = differences(existing.identity, identity.values())
        listed = "\n".join(f"  {path}: {before!r} -> {after!r}" for path, (before, after) in changed.items())
        if not fork:
            raise ExperimentError(
                f"run {existing.name} exists and has other settings:\n{listed}\n"
                "Pass --fork to start a new run from its newest checkpoint, or another --name to start from scratch"
            )
        origin = checkpoint.newest(folder)
        if origin is None:
            raise ExperimentError(f"run {existing.name} has no checkpoint to fork from: pass another --name")
        identity, _ = named(origin, "")
        _, folder = named(origin, f"{existing.name}-{identity.name[-8:]}")
        existing = Run.find(folder)
    if existing is None and origin is not None:
        _check_origin(origin, experiment)
    if existing is not None and _outcome_of_finished(existing) is None:
        _check_workers(existing, experiment)
    return Plan(
        experiment=replace(experiment, name=folder.name),
        store=store,
        identity=identity,
        folder=folder,
        teacher=teacher,
        origin=origin if existing is None else Path(existing.origin) if existing.origin else None,
        existing=existing,
    )


def needed_classes(store: Store, hold_out: bool) -> int:
    """Identities that a run on a store trains on.

    Raises:
        ExperimentError: it has no training split, or too few identities to hold some out.
    """
    if "train" not in store.info.splits:
        raise ExperimentError(f"{store.location} has no train split, only {', '.join(store.info.splits)}")
    people = len(store.info.classes)
    try:
        return people - held_out_people(people) if hold_out else people
    except ValueError as error:
        raise ExperimentError(f"{store.location}: {error}, or pass --no-hold-out") from None


def check_storage(plan: Plan) -> None:
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
    if plan.existing is not None and _outcome_of_finished(plan.existing) is not None:
        return
    here = len(checkpoint.checkpoints(plan.folder))
    needed = checkpoint_bytes(plan.experiment.model) * max(1, plan.experiment.keep + 2 - here)  # the best, a half one
    free = shutil.disk_usage(plan.folder).free
    if free < needed:
        raise ExperimentError(
            f"--storage: {plan.folder} has {free / 2**30:.1f} GiB free, the run's checkpoints take"
            f" {needed / 2**30:.1f} GiB: make room, lower --keep, or name another folder"
        )


def checkpoint_bytes(config: ModelConfig) -> int:
    """About how large a checkpoint is: parameters, and what their optimisers remember of each."""
    with torch.device("meta"):
        state = checkpoint.build(config, "meta", pretrained=False)
    moments = {torch.optim.SGD: 1, torch.optim.Adam: 2}
    size = 0
    for optimizer in state.optimizers.values():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        size += (1 + moments[type(optimizer)]) * sum(parameter.nbytes for parameter in parameters)
    return size


# ------------------------------------------------------------------------------------------------------------
# Before


def _check_origin(origin: Path, experiment: AnyExperiment) -> None:
    """Refuse a checkpoint that a run cannot start from."""
    checkpoint.verify(origin)
    meta, model = checkpoint.read_meta(origin), experiment.model
    refusal = f"a run cannot start from {origin}: "
    if kind_of(meta.config) != kind_of(model):
        raise ExperimentError(f"{refusal}it is of a {kind_of(meta.config)}, the run of a {kind_of(model)}")
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


def _train_teacher(experiment: AnyExperiment, console: Console) -> Path | Trained | None:
    """The teacher that a run needs, trained now if it is not there; if that was stopped, how it stands."""
    if isinstance(experiment, TeacherExperiment) or not experiment.model.needs_teacher:
        return None
    if experiment.teacher != "auto":
        return named_teacher(experiment)
    trained = train(teacher_of(experiment), console=console)
    return trained.checkpoint if trained.outcome.ending == "finished" else trained


def named_teacher(experiment: DGNetExperiment) -> Path | None:
    """The teacher that an experiment names, or None for `auto`.

    Raises:
        ExperimentError: no such teacher.
    """
    if experiment.teacher == "auto":
        return None
    if not experiment.teacher.startswith("run:"):
        return Path(experiment.teacher).expanduser().resolve()
    run_id = experiment.teacher.removeprefix("run:")
    uri = experiment.tracking_uri or tracking.default_uri(experiment.storage)
    try:
        tags = tracking.client(uri).get_run(run_id).data.tags
    except tracking.AWAY as error:
        raise ExperimentError(f"--teacher {experiment.teacher}: MLflow at {uri} does not have it ({error})") from None
    folder = Path(tags.get(tracking.FOLDER_TAG, "").partition(":")[2])
    newest = checkpoint.newest(folder) if folder.is_dir() else None
    if newest is None:
        raise ExperimentError(f"--teacher {experiment.teacher}: its checkpoints are not on this machine ({folder})")
    return newest


def _bring_back(plan: Plan, console: Console) -> bool:
    """Bring back from the archive what is lost of a run; returns whether there was anything."""
    archive = archive_of(plan.experiment)
    if archive is None or not archive.fetch(plan.folder):
        return False
    console.print(f"Brought run {plan.folder.name} back from {archive.location}.", highlight=False, soft_wrap=True)
    return True


def _bring_store(plan: Plan, console: Console) -> None:
    """Download the store, if it is not here, in sight; workers do so by themselves."""
    if plan.experiment.most_workers:
        return
    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task("downloading the store", visible=False)
        kept_here(plan.store, lambda done, total: bar.update(task, completed=done, total=total, visible=True))


def _track(plan: Plan) -> tuple[MlflowClient, Run]:
    """The run's record and its MLflow run, new or opened again."""
    experiment = plan.experiment
    existing = plan.existing
    uri = experiment.tracking_uri or tracking.default_uri(experiment.storage)
    if existing is not None and not experiment.tracking_uri and not tracking.is_gone(existing.tracking_uri):
        uri = tracking.uri_of(existing.mlflow_run, uri, existing.tracking_uri)
    connected, mlflow_experiment = tracking.connect(uri, f"dgnet-{plan.store.info.dataset}")
    teacher = str(plan.teacher) if plan.teacher else None
    if existing is not None and not tracking.is_lost(connected, uri, existing.mlflow_run):
        run = replace(existing, experiment=experiment, teacher=teacher, tracking_uri=uri)
    else:
        config = to_dict(experiment)
        run_id = tracking.open_run(
            connected,
            mlflow_experiment,
            name=plan.folder.name,
            folder=plan.folder,
            params=flat(config),
            tags=_tags(plan),
            store=plan.store,
        )
        run = Run(
            folder=plan.folder,
            experiment=experiment,
            identity=plan.identity.values(),
            teacher=teacher,
            origin=str(plan.origin) if plan.origin else None,
            tracking_uri=uri,
            mlflow_experiment=mlflow_experiment,
            mlflow_run=run_id,
        )
    run.save()
    return connected, run


def _tags(plan: Plan) -> dict[str, str]:
    experiment, code = plan.experiment, code_version()
    workers = max(1, experiment.most_workers)
    on_gpu = experiment.gpus or (not experiment.most_workers and torch.cuda.is_available())
    return {
        "dgnet.kind": plan.identity.kind,
        "dgnet.dataset": plan.store.info.dataset,
        "dgnet.data_fingerprint": plan.store.info.fingerprint,
        "dgnet.drawn_people": str(bool(plan.store.info.origin)).lower(),
        "dgnet.code": code,
        "dgnet.dirty": str(code.endswith("-dirty")).lower(),
        "mlflow.source.git.commit": "" if "+sources." in code else code.partition("+")[2].removesuffix("-dirty"),
        "dgnet.workers": experiment.workers,
        "dgnet.images_a_rank": f"{experiment.model.batch_size / workers:g}",
        "dgnet.batch_norm": "statistics of each rank's batch; running ones averaged over ranks",
        "dgnet.device": "cuda" if on_gpu else "cpu",
        "dgnet.teacher": str(plan.teacher or ""),
        "dgnet.origin": str(plan.origin or ""),
    }


def absolute(location: str) -> str:
    """A folder or URI that holds wherever the worker's working directory is; nothing stays nothing."""
    return location if not location or "://" in location else str(Path(location).expanduser().resolve())


# ------------------------------------------------------------------------------------------------------------
# Meanwhile and afterwards


def _outcome_of_finished(run: Run) -> Outcome | None:
    """How a run ended that is trained and evaluated; None: there is something to do."""
    last = run.experiment.model.iterations
    try:
        checkpoint.verify(run.folder / f"checkpoint_{last:08d}")
    except CheckpointError:
        return None
    return Outcome(ending="finished", iteration=last) if (run.folder / RESULTS / JSON).exists() else None


def _launch(connected: MlflowClient, run: Run, console: Console) -> Outcome:
    """Train a run; whatever goes wrong is told to MLflow too."""
    run.forget_stop()
    tracking.reopen_run(connected, run.mlflow_run)
    try:
        if run.experiment.most_workers:
            launch.connect()
            launch.check_room(run.experiment.workers, _room_for(run))
            launch.check_tracking(run.tracking_uri)
        return _fit(run, console)
    except BaseException as error:
        _close(connected, run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", str(error), console)
        raise


def _fit(run: Run, console: Console) -> Outcome:
    """Train, while a thread shows progress.

    Without workers this thread trains, whatever it is: two threads of one process that both use PyTorch's CPU threads
    halve each other's speed, even when only one of them does so at a time (OpenMP counts the threads of both).
    """
    fit = launch.build_trainer(run).fit
    with Display(run, console) as display, stopping(run, display.say, "saves at the next iteration and stops"):
        try:
            result = elsewhere(fit, partial(_say_waiting, run, display)) if run.experiment.most_workers else fit()
        except TrainingFailedError as error:
            raise TrainingError(launch.cause(error)) from error
    return Outcome(**result.return_value)  # pyright: ignore[reportCallIssue]


def _say_waiting(run: Run, display: Display) -> None:
    """As long as the workers have not begun, show what they may be waiting for."""
    if display.waiting:
        display.say(f"waiting for workers: {_room_for(run)}")


def _room_for(run: Run) -> launch.Room:
    """What a run's workers need at least, and what the cluster has now."""
    return launch.room_for(run.experiment.fewest_workers, run.experiment.gpus)


def _end(connected: MlflowClient, run: Run, outcome: Outcome, register: str | None, console: Console) -> Trained:
    """Close the MLflow run; publish what a finished one has."""
    if not ship(run, lambda: True, patience=5):
        console.print(
            f"MLflow at {run.tracking_uri} does not answer. Nothing is lost: the same command sends the rest.",
            style="yellow",
            soft_wrap=True,
        )
    archive = archive_of(run.experiment)
    if archive is not None and not archive.try_to_push(run.folder):
        console.print(
            f"The archive {archive.location} does not take the run. Nothing is lost here: the same command brings the"
            " rest there.",
            style="yellow",
            soft_wrap=True,
        )
    trained, uri = Trained(run=run, outcome=outcome), None
    if outcome.ending == "finished":
        try:
            uri = publish(connected, run, trained.checkpoint, register)
        except tracking.AWAY as error:
            console.print(f"The model is not in MLflow yet ({error}): run the same command again", style="yellow")
    status = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}[outcome.ending]
    _close(connected, run, status, outcome.reason or outcome.ending, console)
    if outcome.ending == "diverged":
        raise TrainingError(f"run {run.name}: {outcome.reason}")
    return replace(trained, model_uri=uri)


def _close(connected: MlflowClient, run: Run, status: str, reason: str, console: Console) -> None:
    try:
        tracking.close_run(connected, run.mlflow_run, status, reason[:500])  # pyright: ignore[reportArgumentType]
    except tracking.AWAY:
        console.print(f"MLflow still shows run {run.name} as running: it did not answer", style="yellow")
