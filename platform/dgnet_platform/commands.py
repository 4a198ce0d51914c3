"""What the training jobs share: options from a preset, a file and the command line; a first run from nothing; the end.

Later sources win: preset, then --config FILE, then the command line. Every field of an experiment is an option.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from rich.console import Console
from rich.progress import Progress

from dgnet_platform.archive import archive_of
from dgnet_platform.checkpoint import CheckpointError, checkpoints
from dgnet_platform.datasets.decode import PictureError
from dgnet_platform.datasets.images import ImageMemoryError, held_out_people
from dgnet_platform.datasets.people_set import SIZES
from dgnet_platform.datasets.prepare import DrawnSize, PrepareConfig, prepare, printable
from dgnet_platform.datasets.source import SourceError
from dgnet_platform.datasets.store import Store, StoreError
from dgnet_platform.experiment import AnyExperiment, DGNetExperiment, ExperimentError, TeacherExperiment
from dgnet_platform.plain import from_dict, to_dict
from dgnet_platform.presets import Preset, dgnet_experiment, teacher_experiment, teacher_of
from dgnet_platform.results import read, tables
from dgnet_platform.run import folder_of
from dgnet_platform.tracking import TrackingError, ui_command
from dgnet_platform.training import TrainedRun, TrainingError, train
from dgnet_platform.training_plan import TrainingPlan, checkpoint_bytes, make_plan, named_teacher, needed_classes

Kind = TypeVar("Kind", bound=AnyExperiment)
USER_ERRORS = (
    CheckpointError, ExperimentError, ImageMemoryError, OSError, PictureError, SourceError, StoreError, TrackingError,
    TrainingError, ValueError,
)  # fmt: skip
DRAWN: dict[Preset, DrawnSize] = {"laptop": "laptop", "paper": "market"}
"""How many people are drawn where no data is named."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where an experiment's settings start from, and what is done with it."""

    preset: Preset = "laptop"
    """laptop: small networks and pictures, minutes on two CPU cores; paper: the paper's run."""
    iterations: int | None = None
    """Length of the run; warm-up, ramps and milestones scale with it. None: the preset's."""
    config: Path | None = None
    """A YAML file with settings that differ from the preset's, named as in --dry-run."""
    resume_from: Path | None = None
    """A checkpoint that a new run starts from, with its iteration and optimisers."""
    fork: bool = False
    """If the run of this --name has other settings, start a new one from its newest checkpoint."""
    register: str | None = None
    """Publish the finished model in MLflow's registry under this name."""
    dry_run: bool = False
    """Show what would be done, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainDGNet(Start, DGNetExperiment):
    """Options of jobs/train_market.py."""


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(Start, TeacherExperiment):
    """Options of jobs/train_teacher.py."""


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
        trained = train(experiment, console=console, origin=start.resume_from, fork=start.fork, register=start.register)
    except USER_ERRORS as error:
        console.print(printable_lines(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        console.print("Stopped at once: the same command goes on from the last checkpoint.", style="bold yellow")
        return 128 + signal.SIGINT
    _say_goodbye(trained, console)
    return 0 if trained.outcome.ending == "finished" else 128 + signal.SIGINT


def parse(
    options: type[TrainDGNet] | type[TrainTeacher], description: str | None, args: Sequence[str]
) -> tuple[Start, AnyExperiment]:
    """The experiment that a command line asks for.

    Raises:
        ExperimentError: the file of --config is no configuration.
        StoreError: --data is no store.
        SystemExit: the command line is wrong (tyro has explained it), or asked for help.
    """
    first, _ = tyro.cli(Base, args=args, return_unknown_args=True, add_help=False)
    people, images = _counts(first)
    kind, preset = (
        (DGNetExperiment, dgnet_experiment)
        if issubclass(options, DGNetExperiment)
        else (TeacherExperiment, teacher_experiment)
    )
    unset = preset(first.preset, people, images, first.iterations)
    default = unset if first.config is None else _from_file(first.config, unset)
    shown = {field.name: getattr(default, field.name) for field in fields(kind)}
    given = tyro.cli(options, args=args, description=description, default=options(**shown, preset=first.preset))
    start = Start(**{field.name: getattr(given, field.name) for field in fields(Start)})
    experiment = kind(**{field.name: getattr(given, field.name) for field in fields(kind)})
    if experiment.model.num_classes == people and experiment.hold_out:  # nobody said otherwise: the data decides
        experiment = _with_classes(experiment, people - held_out_people(people))
    return start, experiment


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the defaults of an experiment's settings depend on."""

    preset: Preset = "laptop"
    iterations: int | None = None
    config: Path | None = None
    data: str = ""


def base_experiment(base: Base) -> DGNetExperiment:
    """What the trials of a search have in common: an experiment with identities held out.

    Raises:
        ExperimentError: the file of --config is no configuration.
        StoreError: --data is no store.
    """
    people, images = _counts(base)
    experiment = replace(dgnet_experiment(base.preset, people, images, base.iterations), hold_out=True)
    if base.config is not None:
        experiment = _from_file(base.config, experiment)
    assert isinstance(experiment, DGNetExperiment)
    if experiment.model.num_classes == people and experiment.hold_out:
        found = _with_classes(experiment, people - held_out_people(people))
        assert isinstance(found, DGNetExperiment)
        return found
    return experiment


def _counts(first: Base) -> tuple[int, int]:
    """Identities and pictures in the training split that a command line or its file names."""
    data = first.data or (str(_read_yaml(first.config).get("data") or "") if first.config else "")
    if not data:
        size = SIZES[DRAWN[first.preset]]
        return size.train_identities, size.train
    store = Store.open(data)
    return needed_classes(store, hold_out=False), store.count("train")


def _from_file(path: Path, default: AnyExperiment) -> AnyExperiment:
    """An experiment with the settings of a YAML file in place of the preset's.

    Raises:
        ExperimentError: it is no YAML file, or has settings that there are not.
    """
    values = _read_yaml(path)
    try:
        return from_dict(type(default), _merged(to_dict(default), values))
    except ValueError as error:
        raise ExperimentError(f"--config {path}: {error}") from None


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"--config {path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ExperimentError(f"--config {path}: settings with their values are needed, such as keep: 3")
    return values


def _merged(values: Mapping[str, Any], over: Any) -> Any:
    """A tree of values with those of another in their place."""
    if not isinstance(over, Mapping):
        return over
    return {
        **values,
        **{k: _merged(values[k], v) if isinstance(values.get(k), Mapping) else v for k, v in over.items()},
    }


def _with_classes(experiment: AnyExperiment, classes: int) -> AnyExperiment:
    """The experiment for so many identities."""
    if isinstance(experiment, TeacherExperiment):
        return replace(experiment, model=replace(experiment.model, num_classes=classes))
    baseline = replace(experiment.baseline, num_classes=classes)
    return replace(experiment, model=replace(experiment.model, num_classes=classes), baseline=baseline)


# ------------------------------------------------------------------------------------------------------------
# Around the run


def drawn_store(storage: str, preset: Preset) -> Path:
    """Where the people are that are drawn for a preset."""
    return folder_of(storage, "data") / f"people-{DRAWN[preset]}"


def with_data(preset: Preset, experiment: Kind, console: Console) -> Kind:
    """The experiment on a store that exists: where none is named, people are drawn, once."""
    if experiment.data:
        return experiment
    out = drawn_store(experiment.storage, preset)
    if not out.exists():
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("drawing people")
            config = PrepareConfig(dataset="people", size=DRAWN[preset], out=out)
            prepare(config, lambda done, total: bar.update(task, completed=done, total=total))
    return replace(experiment, data=str(out))


def greet(experiment: AnyExperiment, console: Console) -> None:
    """Say what trains on what, and what to watch out for."""
    info = Store.open(experiment.data).info
    if info.origin:
        console.print("On drawn people, who are no photographs: no figure here stands for a public data set.")
    if experiment.elastic:
        console.print(
            f"--workers {experiment.workers}: BatchNorm's batches change with their number, and so does the run.",
            style="yellow",
        )


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
            plan = make_plan(experiment, teacher=teacher, origin=start.resume_from, fork=start.fork)
            lines.append(_fate(plan))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def planned_teacher(experiment: DGNetExperiment) -> tuple[Path | None, str]:
    """The teacher of an experiment, if it is there already, and a line that says so."""
    named = named_teacher(experiment)
    if named is not None:
        return named, f"teacher {named}"
    plan = make_plan(teacher_of(experiment), teacher=None)
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


def printable_lines(error: BaseException) -> str:
    """An error's message, safe to show, with its line breaks."""
    return "\n".join(printable(line) for line in (str(error) or type(error).__name__).splitlines())
