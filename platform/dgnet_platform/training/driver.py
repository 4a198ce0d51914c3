"""A training run from its experiment to its results, as the driver sees it: check, track, launch, watch, publish."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from ray.train import TrainingFailedError
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from dgnet_platform.compute import cluster
from dgnet_platform.data.cache import cached
from dgnet_platform.data.store import Store
from dgnet_platform.errors import TrainingError
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import AnyExperiment, TaughtExperiment
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.runs.run import RESULTS, Outcome, Run, training_alone
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.storage.serialize import flat, to_dict
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun, open_run, status_of, uri_of
from dgnet_platform.tracking.models import publish_model
from dgnet_platform.tracking.notes import run_note, tell
from dgnet_platform.tracking.shipping import ship
from dgnet_platform.training import trainer
from dgnet_platform.training.display import Display
from dgnet_platform.training.interrupts import in_thread, stop_on_signals
from dgnet_platform.training.plan import (
    NamedRun,
    TrainingPlan,
    check_room,
    check_storage,
    make_plan,
    name_run,
    named_teacher,
)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """How a run stands after this command."""

    run: Run
    outcome: Outcome
    model_uri: str | None = None
    """Of the published model; None: it is not finished, or MLflow was away."""

    @property
    def results(self) -> Path:
        """Folder of the final evaluation."""
        return self.run.folder / RESULTS


def train(
    experiment: AnyExperiment,
    *,
    console: Console,
    store: Store | None = None,
    origin: Path | None = None,
    register: str | None = None,
) -> TrainedRun:
    """Train, or resume, the run that an experiment describes.

    A finished run is not trained again; what MLflow lacks is sent.

    Args:
        experiment: what to train. DG-Net's teacher `auto` is trained first.
        console: where progress is shown.
        store: the experiment's, if it is open.
        origin: a checkpoint that a new run starts from; its settings may be others.
        register: publish the finished model in MLflow's registry under this name.

    Raises:
        ExperimentError, StoreError, CheckpointError, TrackingError: it cannot be run as asked; nothing was begun, but
            that a teacher may have been trained for a run whose folder or MLflow cannot be used.
        TrainingError: a worker failed more often than it may, or a loss was not finite.

    Returns:
        The run's outcome; the teacher's, if the teacher was stopped.
    """
    store = store or Store.open(experiment.data)
    teacher = _train_teacher(experiment, store, origin, console)
    if isinstance(teacher, TrainedRun):
        return teacher  # stopped before it was finished
    named = name_run(experiment, teacher=teacher, origin=origin, store=store)
    check_storage(named)
    with training_alone(named.folder):
        _bring_back(named, console)
        plan = make_plan(named)
        check_room(plan)
        with _track(plan) as tracked:
            run = _record(plan, tracked)
            tell(tracked, run_note(run, plan.store.count("train")))
            outcome = plan.outcome
            if outcome is None:
                _bring_store(plan, console)
                outcome = _fit(run, console)
            trained = _end(tracked, run, outcome, register, console)
            tell(tracked, run_note(run, plan.store.count("train")))
            return trained


# ------------------------------------------------------------------------------------------------------------
# Before


def _train_teacher(
    experiment: AnyExperiment, store: Store, origin: Path | None, console: Console
) -> Path | TrainedRun | None:
    """The teacher that a run needs, trained now if it is missing; if that was stopped, how it stands."""
    if not (isinstance(experiment, TaughtExperiment) and experiment.model.needs_teacher):
        return None
    if experiment.teacher != "auto":
        return named_teacher(experiment)
    name_run(experiment, teacher=None, origin=origin, store=store)  # refuses the run before its teacher is trained
    trained = train(teacher_of(experiment), store=store, console=console)
    return trained.run.last_checkpoint if trained.outcome.ending == "finished" else trained


def _bring_back(named: NamedRun, console: Console) -> None:
    """Bring back from the archive what is lost of a run."""
    archive = archive_of(named.experiment)
    if archive is not None and archive.fetch(named.folder):
        console.print(f"Brought run {named.folder.name} back from {archive.location}.", highlight=False, soft_wrap=True)


def _bring_store(plan: TrainingPlan, console: Console) -> None:
    """Download the store, if it is elsewhere, in sight; workers do so by themselves."""
    if plan.experiment.most_workers:
        return
    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task("downloading the store", visible=False)
        cached(plan.store, lambda done, total: bar.update(task, completed=done, total=total, visible=True))


def _track(plan: TrainingPlan) -> TrackedRun:
    """The run in MLflow, new or opened again."""
    experiment, existing = plan.experiment, plan.existing
    uri = experiment.tracking_uri or default_uri(experiment.storage)
    if existing is not None and not experiment.tracking_uri:
        uri = uri_of(existing, uri)
    return open_run(
        uri,
        plan.store,
        name=plan.folder.name,
        folder=plan.folder,
        params=flat(to_dict(experiment)),
        tags=_tags(plan),
        known=existing.mlflow_run if existing is not None else None,
        resume=plan.outcome is None,
    )


def _record(plan: TrainingPlan, tracked: TrackedRun) -> Run:
    """The run's record as it holds from now on, saved."""
    now = {
        "experiment": plan.experiment,
        "teacher": str(plan.teacher) if plan.teacher else None,
        "tracking_uri": tracked.uri,
        "mlflow_experiment": tracked.experiment,
        "mlflow_run": tracked.id,
        "stop_file": None,  # that of a search or of tables is theirs
    }
    if plan.existing is not None:
        run = replace(plan.existing, **now)
    else:
        origin = str(plan.origin) if plan.origin else None
        given = {"folder": plan.folder, "identity": plan.identity.values(), "origin": origin}
        run = Run(**given, code=training_digest(), evaluated_at_end=plan.evaluated_at_end, **now)
    run.save()
    return run


def _tags(plan: TrainingPlan) -> dict[str, str]:
    experiment = plan.experiment
    workers = max(1, experiment.most_workers)
    on_gpu = experiment.gpus or (not experiment.most_workers and torch.cuda.is_available())
    return {
        "dgnet.kind": plan.identity.kind,
        "dgnet.workers": experiment.workers,
        "dgnet.images_a_rank": f"{experiment.model.batch_size / workers:g}",
        "dgnet.batch_norm": experiment.model.batch_norm,
        "dgnet.device": "cuda" if on_gpu else "cpu",
        "dgnet.teacher": str(plan.teacher or ""),
        "dgnet.origin": str(plan.origin or ""),
    }


# ------------------------------------------------------------------------------------------------------------
# Meanwhile and afterwards


def _fit(run: Run, console: Console) -> Outcome:
    """Train, while a thread shows progress.

    Without workers this thread trains, whatever it is: two threads of one process that both use PyTorch's CPU threads
    halve each other's speed, even when only one of them does so at a time (OpenMP counts the threads of both).
    """
    run.forget_stop()
    experiment = run.experiment
    if experiment.most_workers:
        cluster.join_ray()
        cluster.check_capacity(experiment.workers, _needed(run))
        cluster.check_tracking(run.tracking_uri)
    fit = trainer.build_trainer(run).fit
    with Display(run, console) as display, stop_on_signals(run, display.say, "saves at the next iteration and stops"):
        try:
            result = in_thread(fit, partial(_say_waiting, run, display)) if experiment.most_workers else fit()
        except TrainingFailedError as error:
            raise TrainingError(trainer.cause(error)) from error
    return Outcome(**result.return_value)  # pyright: ignore[reportCallIssue]


def _say_waiting(run: Run, display: Display) -> None:
    """As long as the workers have not begun, show what they may be waiting for."""
    if display.waiting:
        display.say(f"waiting for workers: {_needed(run)}")


def _needed(run: Run) -> cluster.Capacity:
    """What a run's workers need at least, and what the cluster has now."""
    return cluster.capacity_for(run.experiment.fewest_workers, run.experiment.gpus)


def _end(tracked: TrackedRun, run: Run, outcome: Outcome, register: str | None, console: Console) -> TrainedRun:
    """Publish what a finished run has, and close it in MLflow."""
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
    trained = TrainedRun(run=run, outcome=outcome)
    if outcome.ending == "finished":
        try:
            trained = replace(trained, model_uri=publish_model(tracked, run, trained.run.last_checkpoint, register))
        except UNREACHABLE as error:
            console.print(f"The model is not in MLflow yet ({error}): run the same command again", style="yellow")
    tracked.close(status_of(outcome.ending), outcome.reason or outcome.ending)
    if outcome.ending == "diverged":
        raise TrainingError(f"run {run.name}: {outcome.reason}")
    return trained
