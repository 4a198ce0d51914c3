"""What the training commands do and show."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml
from rich.console import Console
from rich.text import Text

from dgnet_core.learning.config import MethodConfig
from dgnet_platform.cli.evaluate import tables
from dgnet_platform.cli.options import RunOptions
from dgnet_platform.cli.terminal import DONE, STOPPED, progress_bars
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.results import read
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.checkpoint import checkpoints
from dgnet_platform.runs.experiment import AnyExperiment, TaughtExperiment
from dgnet_platform.runs.presets import DRAWN, Preset, length_remarks, teacher_of
from dgnet_platform.runs.run import checkpoint_at, folder_of
from dgnet_platform.runs.tracking_uri import where_to_look
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import TrainedRun, train
from dgnet_platform.training.plan import TrainingPlan, checkpoint_bytes, make_plan, name_run, named_teacher

Kind = TypeVar("Kind", bound=AnyExperiment)


def train_and_show(options: RunOptions, experiment: AnyExperiment, console: Console) -> int:
    """Train, and show what came out; returns the exit status."""
    if options.dry_run:
        _show_plan(options, experiment, console)
        return DONE
    experiment = with_data(options.preset, experiment, console)
    announce(experiment, console)
    for line in length_lines(options.preset, experiment)[1:]:
        console.print(line)
    trained = train(experiment, console=console, origin=options.resume_from, register=options.register)
    _say_goodbye(trained, console)
    return DONE if trained.outcome.ending == "finished" else STOPPED


def drawn_store(storage: str, preset: Preset) -> Path:
    """Where the people are that are drawn for a preset."""
    return folder_of(storage, "data") / f"people-{DRAWN[preset]}"


def with_data(preset: Preset, experiment: Kind, console: Console) -> Kind:
    """The experiment on a store that exists: where none is named, people are drawn, once."""
    if experiment.data:
        return experiment
    out = drawn_store(experiment.storage, preset)
    if not out.exists():
        with progress_bars(console) as show:
            prepare(PrepareConfig(dataset="people", size=DRAWN[preset], out=out), partial(show, "drawing people"))
    return replace(experiment, data=str(out))


def announce(experiment: AnyExperiment, console: Console) -> None:
    """Say what trains on what, and what to watch out for."""
    if Store.open(experiment.data).info.origin:
        console.print("On drawn people, who are no photographs: no figure here stands for a public data set.")
    models = {"model": experiment.model}
    if isinstance(experiment, TaughtExperiment) and experiment.teacher == "auto" and experiment.model.needs_teacher:
        models["baseline"] = experiment.baseline
    for section, model in models.items():
        if model.batch_norm != "synchronised" and experiment.most_workers > 1:
            images = model.batch_size // experiment.most_workers
            changes = " Their number changes, and so does the run." if experiment.elastic else ""
            console.print(
                f"--{section}.batch-norm {model.batch_norm}: each of {experiment.most_workers} workers normalises"
                f" over {images} of {model.batch_size} images.{changes}",
                style="yellow",
            )


def length_lines(preset: Preset, experiment: AnyExperiment) -> list[Text]:
    """How many epochs a run has, and for DG-Net what is unusual about its length and batches."""
    model, size = experiment.model, SIZES[DRAWN[preset]]
    pictures, people = size.train, size.train_identities
    if experiment.data:
        store = Store.open(experiment.data)
        pictures, people = store.count("train"), len(store.info.classes)
    trained = max(1, round(pictures * model.num_classes / people))  # others are held out
    epochs = model.iterations * model.batch_size / trained
    lines = [Text(f"{model.iterations:,} iterations, {epochs:.1f} epochs of about {trained:,} pictures")]
    return lines + [Text(remark, style="yellow") for remark in length_remarks(preset, model, trained)]


def _show_plan(options: RunOptions, experiment: AnyExperiment, console: Console) -> None:
    """Print the experiment, and what training it would come down to."""
    console.print(yaml.safe_dump(to_dict(experiment), sort_keys=False, allow_unicode=True))
    size = checkpoint_bytes(experiment.model) / 2**20
    for line in length_lines(options.preset, experiment):
        console.print(line)
    lines = [f"a checkpoint takes {size:,.0f} MiB"]
    if not experiment.data and not drawn_store(experiment.storage, options.preset).exists():
        lines.append(f"people would be drawn into {drawn_store(experiment.storage, options.preset)}")
    else:
        experiment = replace(experiment, data=experiment.data or str(drawn_store(experiment.storage, options.preset)))
        teacher = None
        if isinstance(experiment, TaughtExperiment) and experiment.model.needs_teacher:
            teacher, found = planned_teacher(experiment)
            lines.append(found)
        if teacher is not None or not isinstance(experiment, TaughtExperiment):
            plan = make_plan(name_run(experiment, teacher=teacher, origin=options.resume_from))
            lines.append(_next_action(plan))
    for line in lines:
        console.print(line)


def planned_teacher(experiment: TaughtExperiment[MethodConfig]) -> tuple[Path | None, str]:
    """The teacher of an experiment, if it is there already, and a line that says so."""
    named = named_teacher(experiment)
    if named is not None:
        return named, f"teacher {named}"
    plan = make_plan(name_run(teacher_of(experiment), teacher=None))
    path = checkpoint_at(plan.folder, plan.experiment.model.iterations)
    if path.exists():
        return path, f"teacher {path}"
    if _archived(plan) is not None:
        return None, f"teacher {plan.folder.name} would be brought back from {plan.experiment.archive}"
    return None, f"teacher {plan.folder.name} would be trained first: {plan.experiment.model.iterations:,} iterations"


def _next_action(plan: TrainingPlan) -> str:
    newest = sorted(checkpoints(plan.folder)) if plan.existing else []
    if newest:
        return f"run {plan.folder.name} would resume from {newest[-1].name}"
    if found := _archived(plan):
        return (
            f"run {plan.folder.name} would be brought back from {plan.experiment.archive} and resume from {found.name}"
        )
    return f"run {plan.folder.name} would start from {plan.origin or 'the beginning'}"


def _archived(plan: TrainingPlan) -> Path | None:
    """The checkpoint that would be brought back from the archive."""
    archive = archive_of(plan.experiment)
    return archive.nearest(plan.folder, plan.experiment.model.iterations) if archive is not None else None


def _say_goodbye(trained: TrainedRun, console: Console) -> None:
    """The results of a finished run, or how to resume it; and where to look."""
    run = trained.run
    if trained.outcome.ending == "finished":
        if run.evaluated_at_end:
            console.print(tables(read(trained.results)))
            console.print(f"Tables and pictures: {trained.results}")
        else:
            console.print(
                f"Not evaluated: {run.experiment.data} has no query and gallery; jobs/evaluate.py takes other stores.",
                style="yellow",
            )
        console.print(f"Checkpoint: {trained.run.last_checkpoint}")
        if trained.model_uri:
            console.print(f"Model in MLflow: {trained.model_uri}")
    else:
        console.print(
            f"Stopped and saved at iteration {trained.outcome.iteration:,} of {run.experiment.model.iterations:,}:"
            " the same command resumes from there.",
            style="yellow",
        )
    look = where_to_look(run.tracking_uri, run.mlflow_experiment, run.mlflow_run)
    console.print(f"Curves and pictures of run {run.name}: {look}", style="green")
