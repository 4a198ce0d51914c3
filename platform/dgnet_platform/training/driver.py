"""A training run from its experiment to its results, as the driver sees it: check, track, launch, watch, publish."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from mlflow import MlflowClient
from ray.train import TrainingFailedError
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from dgnet_platform.compute import cluster as machines
from dgnet_platform.data.cache import cached
from dgnet_platform.errors import TrainingError
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import AnyExperiment, TaughtExperiment
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.run import RESULTS, Outcome, Run, training_alone
from dgnet_platform.runs.tracking_uri import default_uri, is_gone
from dgnet_platform.storage.serialize import flat, to_dict
from dgnet_platform.tracking import client as tracking
from dgnet_platform.tracking.models import publish
from dgnet_platform.tracking.shipping import ship
from dgnet_platform.training import trainer as launch
from dgnet_platform.training.display import Display
from dgnet_platform.training.interrupts import elsewhere, stopping
from dgnet_platform.training.plan import TrainingPlan, check_storage, make_plan, named_teacher, outcome_of_finished


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
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


def train(
    experiment: AnyExperiment,
    *,
    console: Console,
    origin: Path | None = None,
    fork: bool = False,
    register: str | None = None,
) -> TrainedRun:
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
    if isinstance(teacher, TrainedRun):
        return teacher  # stopped before it was finished
    while True:
        plan = make_plan(experiment, teacher=teacher, origin=origin, fork=fork)
        check_storage(plan)
        with training_alone(plan.folder):
            if _bring_back(plan, console):
                continue  # now there is a run to go on with, or to fork from
            connected, run = _track(plan)
            outcome = outcome_of_finished(run)
            if outcome is None:
                _bring_store(plan, console)
                outcome = _launch(connected, run, console)
            return _end(connected, run, outcome, register, console)


# ------------------------------------------------------------------------------------------------------------
# Before


def _train_teacher(experiment: AnyExperiment, console: Console) -> Path | TrainedRun | None:
    """The teacher that a run needs, trained now if it is not there; if that was stopped, how it stands."""
    if not (isinstance(experiment, TaughtExperiment) and experiment.model.needs_teacher):
        return None
    if experiment.teacher != "auto":
        return named_teacher(experiment)
    trained = train(teacher_of(experiment), console=console)
    return trained.checkpoint if trained.outcome.ending == "finished" else trained


def _bring_back(plan: TrainingPlan, console: Console) -> bool:
    """Bring back from the archive what is lost of a run; returns whether there was anything."""
    archive = archive_of(plan.experiment)
    if archive is None or not archive.fetch(plan.folder):
        return False
    console.print(f"Brought run {plan.folder.name} back from {archive.location}.", highlight=False, soft_wrap=True)
    return True


def _bring_store(plan: TrainingPlan, console: Console) -> None:
    """Download the store, if it is not here, in sight; workers do so by themselves."""
    if plan.experiment.most_workers:
        return
    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task("downloading the store", visible=False)
        cached(plan.store, lambda done, total: bar.update(task, completed=done, total=total, visible=True))


def _track(plan: TrainingPlan) -> tuple[MlflowClient, Run]:
    """The run's record and its MLflow run, new or opened again."""
    experiment = plan.experiment
    existing = plan.existing
    uri = experiment.tracking_uri or default_uri(experiment.storage)
    if existing is not None and not experiment.tracking_uri and not is_gone(existing.tracking_uri):
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
            identity=plan.identity.values() if existing is None else existing.identity,
            teacher=teacher,
            origin=str(plan.origin) if plan.origin else None,
            tracking_uri=uri,
            mlflow_experiment=mlflow_experiment,
            mlflow_run=run_id,
        )
    run.save()
    return connected, run


def _tags(plan: TrainingPlan) -> dict[str, str]:
    experiment = plan.experiment
    workers = max(1, experiment.most_workers)
    on_gpu = experiment.gpus or (not experiment.most_workers and torch.cuda.is_available())
    return {
        "dgnet.kind": plan.identity.kind,
        "dgnet.workers": experiment.workers,
        "dgnet.images_a_rank": f"{experiment.model.batch_size / workers:g}",
        "dgnet.batch_norm": "statistics of each rank's batch; running ones averaged over ranks",
        "dgnet.device": "cuda" if on_gpu else "cpu",
        "dgnet.teacher": str(plan.teacher or ""),
        "dgnet.origin": str(plan.origin or ""),
    }


# ------------------------------------------------------------------------------------------------------------
# Meanwhile and afterwards


def _launch(connected: MlflowClient, run: Run, console: Console) -> Outcome:
    """Train a run; whatever goes wrong is told to MLflow too."""
    run.forget_stop()
    tracking.reopen_run(connected, run.mlflow_run)
    try:
        if run.experiment.most_workers:
            machines.connect()
            machines.check_room(run.experiment.workers, _room_for(run))
            machines.check_tracking(run.tracking_uri)
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


def _room_for(run: Run) -> machines.Room:
    """What a run's workers need at least, and what the cluster has now."""
    return machines.room_for(run.experiment.fewest_workers, run.experiment.gpus)


def _end(connected: MlflowClient, run: Run, outcome: Outcome, register: str | None, console: Console) -> TrainedRun:
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
    trained, uri = TrainedRun(run=run, outcome=outcome), None
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
