"""The training jobs' command."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console

from dgnet_platform.cli.evaluate import tables
from dgnet_platform.cli.options import Start, TrainDGNet, TrainTeacher, drawn_store, parse, with_data
from dgnet_platform.cli.terminal import USER_ERRORS, greet, printable_lines
from dgnet_platform.evaluation.results import read
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.checkpoint import checkpoints
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.tracking_uri import ui_command
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import TrainedRun, TrainingError, train
from dgnet_platform.training.plan import TrainingPlan, checkpoint_bytes, make_plan, name_run, named_teacher


def run_job(options: type[TrainDGNet] | type[TrainTeacher], description: str | None, args: Sequence[str] | None) -> int:
    """Parse the command line, train, and show what came out.

    Returns:
        The exit status: 0 finished, 2 refused, 1 failed on the way, 130 stopped and saved.
    """
    console = Console()
    try:
        start, experiment = parse(options, description, sys.argv[1:] if args is None else args)
        if start.dry_run:
            _show_plan(start, experiment, console)
            return 0
        experiment = with_data(start.preset, experiment, console)
        greet(experiment, console)
        trained = train(experiment, console=console, origin=start.resume_from, register=start.register)
    except USER_ERRORS as error:
        console.print(printable_lines(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        console.print("Stopped at once: the same command goes on from the last checkpoint.", style="bold yellow")
        return 128 + signal.SIGINT
    _say_goodbye(trained, console)
    return 0 if trained.outcome.ending == "finished" else 128 + signal.SIGINT


def _show_plan(start: Start, experiment: AnyExperiment, console: Console) -> None:
    """Print the experiment, and what training it would come down to."""
    console.print(yaml.safe_dump(to_dict(experiment), sort_keys=False, allow_unicode=True), markup=False)
    size = checkpoint_bytes(experiment.model) / 2**20
    lines = [f"{experiment.model.iterations:,} iterations; a checkpoint takes {size:,.0f} MiB"]
    if not experiment.data and not drawn_store(experiment.storage, start.preset).exists():
        lines.append(f"people would be drawn into {drawn_store(experiment.storage, start.preset)}")
    else:
        experiment = replace(experiment, data=experiment.data or str(drawn_store(experiment.storage, start.preset)))
        teacher = None
        if isinstance(experiment, DGNetExperiment) and experiment.model.needs_teacher:
            teacher, found = planned_teacher(experiment)
            lines.append(found)
        if teacher is not None or not isinstance(experiment, DGNetExperiment):
            plan = make_plan(name_run(experiment, teacher=teacher, origin=start.resume_from))
            lines.append(_fate(plan))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def planned_teacher(experiment: DGNetExperiment) -> tuple[Path | None, str]:
    """The teacher of an experiment, if it is there already, and a line that says so."""
    named = named_teacher(experiment)
    if named is not None:
        return named, f"teacher {named}"
    plan = make_plan(name_run(teacher_of(experiment), teacher=None))
    path = plan.folder / f"checkpoint_{plan.experiment.model.iterations:08d}"
    if path.exists():
        return path, f"teacher {path}"
    if _archived(plan) is not None:
        return None, f"teacher {plan.folder.name} would be brought back from {plan.experiment.archive}"
    return None, f"teacher {plan.folder.name} would be trained first: {plan.experiment.model.iterations:,} iterations"


def _fate(plan: TrainingPlan) -> str:
    newest = sorted(checkpoints(plan.folder)) if plan.existing else []
    if newest:
        return f"run {plan.folder.name} would go on from {newest[-1].name}"
    if found := _archived(plan):
        return (
            f"run {plan.folder.name} would be brought back from {plan.experiment.archive} and go on from {found.name}"
        )
    return f"run {plan.folder.name} would start from {plan.origin or 'the beginning'}"


def _archived(plan: TrainingPlan) -> Path | None:
    """The checkpoint that would be brought back from the archive."""
    archive = archive_of(plan.experiment)
    return archive.nearest(plan.folder, plan.experiment.model.iterations) if archive is not None else None


def _say_goodbye(trained: TrainedRun, console: Console) -> None:
    """The results of a finished run, or how to go on with it; and where to look."""
    run = trained.run
    if trained.outcome.ending == "finished":
        console.print(tables(read(trained.results)))
        console.print(f"Tables and pictures: {trained.results}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"Checkpoint: {trained.checkpoint}", markup=False, highlight=False, soft_wrap=True)
        if trained.model_uri:
            console.print(f"Model in MLflow: {trained.model_uri}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(
            f"Stopped and saved at iteration {trained.outcome.iteration:,} of {run.experiment.model.iterations:,}:"
            " the same command goes on from there.",
            style="yellow",
        )
    console.print(
        f"Curves and pictures of run {run.name}: {ui_command(run.tracking_uri)}", style="green", soft_wrap=True
    )
