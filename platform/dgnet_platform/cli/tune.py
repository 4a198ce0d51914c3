"""The search job: its options, a first search from nothing, and what is shown at its end."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tyro
import yaml
from rich.console import Console

from dgnet_platform.cli.options import Base, Kind, base_experiment, drawn_store, with_data
from dgnet_platform.cli.terminal import USER_ERRORS, greet, printable_lines
from dgnet_platform.cli.train import planned_teacher
from dgnet_platform.compute.cluster import is_local
from dgnet_platform.data.held_out import needed_classes
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import DGNetExperiment, check_name
from dgnet_platform.runs.presets import ITERATIONS, TRIALS, Preset, teacher_of
from dgnet_platform.runs.tracking_uri import ui_command, usable
from dgnet_platform.search.display import SearchDisplay
from dgnet_platform.search.driver import Search, place_search
from dgnet_platform.search.leaderboard import leaderboard_table
from dgnet_platform.search.plan import SearchConfig, SearchPlan, plan_search
from dgnet_platform.search.results import Results
from dgnet_platform.search.sharing import Costs, SharingPlan, plan_sharing, simulated_ends
from dgnet_platform.search.space import Space, Value
from dgnet_platform.search.study import FILE
from dgnet_platform.storage.files import locked
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import TrainingError, train
from dgnet_platform.training.interrupts import in_thread, stop_on_signals
from dgnet_platform.training.plan import absolute, check_free, named_teacher

COSTS: dict[Preset, Costs] = {"laptop": Costs(0.18, 0.25), "paper": Costs(1.0, 1.32, seconds=False)}
"""An iteration before and after the warm-up start: on two CPU cores, and of the paper's size as a ratio."""


@dataclass(frozen=True, kw_only=True)
class TuneMarket(SearchConfig):
    """Options of jobs/tune_market.py."""

    data: str = ""
    """The store to search on: folder or URI, made by jobs/prepare_data.py; none: people are drawn."""
    preset: Preset = "laptop"
    """laptop: small networks and pictures, minutes on two CPU cores; paper: the paper's run."""
    iterations: int | None = None
    """Length of a trial; warm-up, ramps and milestones scale with it. None: the preset's, 400 for laptop."""
    config: Path | None = None
    """A YAML file with settings of all trials that differ from the preset's, named as in --dry-run."""
    trials: str = ""
    """How many trials are wanted in all: 8 (laptop) or 64 (paper) if nobody says; +N: so many more, once those that
    were wanted are done."""
    name: str = ""
    """Name of the search; none: made of the data set and a hash of all that decides the results."""
    space: Path | None = None
    """A YAML file with what is searched: by parameter a value that fixes it, {low: ..., high: ..., log: ..., step: ...}
    or {choices: [...]}."""
    set: tuple[str, ...] = ()
    """The same for one parameter each, such as alpha=0.2 'prim={low: 1, high: 4}'."""
    teacher: str = "auto"
    """A teacher's checkpoint, or auto: trained on the same data once and found again later."""
    storage: str = field(default_factory=lambda: os.environ.get("DGNET_STORAGE", "runs"))
    """Folder of all runs, which all machines must see; none: the environment's DGNET_STORAGE, or runs."""
    archive: str = ""
    """Where copies of what is in the storage folder go, such as s3://bucket/runs, and come from when it is lost."""
    tracking_uri: str = ""
    """MLflow's store or server, such as http://127.0.0.1:5000; none: the environment's DGNET_TRACKING_URI, or mlflow.db
    in the storage folder."""
    retrain: bool = False
    """At the end, train the best trial's settings on all training identities."""
    dry_run: bool = False
    """Show what would be done, and do nothing."""
    seconds_before: float | None = None
    """Seconds of an iteration before the warm-up start, for the plan that --dry-run shows."""
    seconds_after: float | None = None
    """The same after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.trials.removeprefix("+")
        if self.trials and not (number.isascii() and number.isdigit() and int(number)):
            raise ValueError(f"trials {self.trials!r}: a number such as 64, or one with a plus such as +16")
        if (self.seconds_before is None) != (self.seconds_after is None):
            raise ValueError("seconds_before and seconds_after: give both or none")
        check_name(self.name)

    @property
    def search(self) -> SearchConfig:
        """Those of the search itself."""
        return SearchConfig(**{field.name: getattr(self, field.name) for field in fields(SearchConfig)})


def tune_job(description: str | None, args: Sequence[str] | None) -> int:
    """Parse the command line, search, and show what came out.

    Returns:
        The exit status: 0 finished, 2 refused, 1 failed on the way, 130 stopped and saved.
    """
    console = Console()
    try:
        options = tyro.cli(TuneMarket, args=sys.argv[1:] if args is None else args, description=description)
        base, space = what(options)
        if options.dry_run:
            _show_plan(options, base, space, console)
            return 0
        return _search(options, with_data(options.preset, base, console), space, console)
    except USER_ERRORS as error:
        console.print(printable_lines(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        console.print("Stopped at once: the same command goes on from the last checkpoints.", style="bold yellow")
        return 128 + signal.SIGINT


def what(options: TuneMarket) -> tuple[DGNetExperiment, Space]:
    """What all trials have in common, and what is searched.

    Raises:
        ExperimentError, StoreError, SpaceError: the files or the command line ask for what there is not.
    """
    base = base_experiment(
        Base(
            preset=options.preset,
            iterations=ITERATIONS[options.preset] if options.iterations is None else options.iterations,
            config=options.config,
            data=options.data,
        )
    )
    if options.config is not None and not base.hold_out:
        raise ExperimentError(
            f"--config {options.config}: hold_out is false, but trials are compared on those held out"
        )
    grouped = options.workers_per_trial > 1
    base = replace(
        base,
        data=absolute(options.data or base.data),
        storage=absolute(options.storage),
        archive=absolute(options.archive or base.archive),
        tracking_uri=usable(options.tracking_uri or base.tracking_uri),
        teacher=base.teacher if options.teacher == "auto" else options.teacher,
        workers=str(options.workers_per_trial) if grouped else "0",
        gpus=grouped and options.gpus_per_trial > 0,
    )
    space = Space.default(base.model)
    if options.space is not None:
        space = space.overridden(_read(options.space))
    space = space.overridden(dict(map(_setting, options.set)))
    space.distances(base.model, options.stopping)  # refuses a space that does not fit the run
    return base, space


def _read(path: Path) -> Mapping[str, object]:
    """A file of dimensions."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"--space {path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ExperimentError(f"--space {path}: parameters with their values are needed, such as alpha: 0.2")
    return values


def _setting(text: str) -> tuple[str, object]:
    """One dimension from the command line."""
    name, equals, value = text.partition("=")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
    if not equals or parsed is None:
        raise ExperimentError(
            f"--set {text}: a value, a range or choices are needed, such as alpha=0.2, 'alpha={{low: 0.1, high: 1}}' or"
            " 'alpha={choices: [0.1, 0.2]}'"
        )
    return name.strip(), parsed


# ------------------------------------------------------------------------------------------------------------
# The search


def _search(options: TuneMarket, base: DGNetExperiment, space: Space, console: Console) -> int:
    greet(base, console)
    teacher = None
    if base.model.needs_teacher:
        teacher = named_teacher(base)
        if teacher is None:
            trained = train(_off_the_head(teacher_of(base), options.search), console=console)
            if trained.outcome.ending != "finished":
                console.print("Stopped while the teacher was trained: the same command goes on.", style="yellow")
                return 128 + signal.SIGINT
            teacher = trained.checkpoint
    config = options.search
    planned = plan_search(base, space, config, name=options.name, preset=options.preset, teacher=teacher)
    try:
        planned.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"--storage: {planned.folder} cannot be made ({error}): name another folder") from None
    archive = archive_of(base)
    if archive is not None:
        archive.check()
    with locked(planned.folder):
        if archive is not None and not (planned.folder / FILE).exists() and archive.fetch(planned.folder):
            console.print(f"Brought search {planned.name} back from {archive.location}.", soft_wrap=True)
        placement = place_search(planned)
        if not (planned.folder / FILE).exists():  # another one has made room for itself, or is only looked at
            check_free(planned.folder, base.model, (base.keep + 2) * placement.concurrent)
        search = Search(planned, placement)
        search.study.set_target(*_wanted(options, search))
        results = Results(planned, search.study)
        _run(search, results, console)
        best = results.publish(search.trials.tracked.run)
        if not search.trials.bring_to_archive():
            console.print(
                f"The archive {base.archive} does not take the search. Nothing is lost here: the same command brings"
                " the rest there.",
                style="yellow",
                soft_wrap=True,
            )
    _say_goodbye(results, best, console)
    if not results.complete:
        return 128 + signal.SIGINT
    return _retrain(results, console) if options.retrain else 0


def _off_the_head(experiment: Kind, config: SearchConfig) -> Kind:
    """A run beside the trials: the head of a cluster, where the command runs, is not made for it, a worker is."""
    if is_local() or experiment.most_workers:
        return experiment
    return replace(experiment, workers="1", gpus=config.gpus_per_trial > 0)


def _wanted(options: TuneMarket, search: Search) -> tuple[int, int]:
    """How many trials, and how many more."""
    if options.trials.startswith("+"):
        return (0 if search.study.target else TRIALS[options.preset]), int(options.trials)
    return int(options.trials or search.study.target or TRIALS[options.preset]), 0


def _run(search: Search, results: Results, console: Console) -> None:
    """Run the trials that are left, while a table shows them."""
    search.trials.recover()
    if not results.complete:
        what = "trials save at their next iteration and stop"
        with SearchDisplay(results, console) as display, stop_on_signals(search, display.say, what):
            in_thread(search.run)


def _say_goodbye(results: Results, best: Path | None, console: Console) -> None:
    """The leaderboard, what it took, and where to look."""
    plan, study, costs = results.plan, results.study, results.costs()
    lines = [
        f"{costs['spent']:,} iterations trained; {costs['without_sharing']:,} without shared prefixes,"
        f" {costs['without_stopping']:,} without early stopping too",
    ]
    if best is not None:
        lines.append(f"Best settings: {best} (jobs/train_market.py --preset {plan.preset} --config takes it)")
    console.print(leaderboard_table(results.rows(), most=20))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not results.complete:
        left = study.missing + len(study.running)
        console.print(f"Stopped with {left} trials left: the same command goes on from there.", style="yellow")
    console.print(
        f"Curves and pictures of search {plan.name}: {ui_command(plan.tracking_uri)}", style="green", soft_wrap=True
    )


def _retrain(results: Results, console: Console) -> int:
    """Train the best trial's settings on all training identities."""
    plan, number = results.plan, results.best()
    if number is None:
        raise TrainingError("--retrain: no trial is finished")
    base, people = plan.base, needed_classes(plan.store, hold_out=False)
    model = replace(plan.model(results.study.values(number)), num_classes=people)
    experiment = replace(
        base,
        name=f"{plan.name}-best-{number:03d}",
        hold_out=False,
        model=model,
        baseline=replace(base.baseline, num_classes=people),
        teacher="auto",
    )
    trained = train(_off_the_head(experiment, plan.config), console=console)
    console.print(f"Trained on all {people:,} identities: {trained.checkpoint}", markup=False, soft_wrap=True)
    return 0 if trained.outcome.ending == "finished" else 128 + signal.SIGINT


# ------------------------------------------------------------------------------------------------------------
# The plan


def simulated(options: TuneMarket, base: DGNetExperiment, space: Space) -> SharingPlan:
    """What the search would share if its results were drawn by lot and its trials at random."""
    count = int(options.trials.removeprefix("+") or TRIALS[options.preset])
    points: list[dict[str, Value]] = [{}, *space.draw(count - 1, options.seed)]
    configs = [space.apply(base.model, values) for values in points]
    ends = simulated_ends(configs, options.stopping, options.seed, at=space.distances(base.model, options.stopping))
    costs = COSTS[options.preset]
    if options.seconds_before is not None and options.seconds_after is not None:
        costs = Costs(options.seconds_before, options.seconds_after)
    return plan_sharing(configs, ends, costs)


def _show_plan(options: TuneMarket, base: DGNetExperiment, space: Space, console: Console) -> None:
    """Print what all trials have in common, what is searched, and what it comes down to."""
    console.print(yaml.safe_dump(to_dict(base), sort_keys=False, allow_unicode=True), markup=False)
    console.print(space)
    console.print(simulated(options, base, space))
    console.print("A simulated sample: trials at random, their results by lot; the sampler will choose others.")
    lines: list[str] = []
    store = Path(base.data) if base.data else drawn_store(base.storage, options.preset)
    if not base.data and not store.exists():
        lines.append(f"people would be drawn into {store}")
    else:
        base = replace(base, data=base.data or str(store))
        teacher, found = planned_teacher(base) if base.model.needs_teacher else (None, "no teacher is needed")
        lines.append(found)
        if teacher is not None or not base.model.needs_teacher:
            planned = plan_search(
                base, space, options.search, name=options.name, preset=options.preset, teacher=teacher
            )
            lines.append(_fate(planned))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _fate(planned: SearchPlan) -> str:
    there = (planned.folder / FILE).exists()
    return f"search {planned.name} would {'go on' if there else 'start'} in {planned.folder}"
