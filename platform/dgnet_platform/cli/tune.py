"""What the search command does and shows: a first search from nothing, its plan, and its end."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console

from dgnet_platform.cli.options import PaperTables, TuneMarket
from dgnet_platform.cli.terminal import DONE, STOPPED
from dgnet_platform.cli.train import Kind, announce, drawn_store, length_lines, planned_teacher, with_data
from dgnet_platform.compute.cluster import is_local
from dgnet_platform.data.held_out import needed_classes
from dgnet_platform.errors import ExperimentError, TrainingError
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import DGNetExperiment
from dgnet_platform.runs.presets import TRIALS, Preset, teacher_of
from dgnet_platform.runs.run import training_alone
from dgnet_platform.runs.tracking_uri import where_to_look
from dgnet_platform.search.config import SearchConfig
from dgnet_platform.search.confirmation import CONFIRMED
from dgnet_platform.search.driver import Search, place_search
from dgnet_platform.search.plan import SearchPlan, check_base, check_compared, plan_search
from dgnet_platform.search.report.display import SearchDisplay
from dgnet_platform.search.report.figures import ENOUGH
from dgnet_platform.search.report.leaderboard import FINISHED, TrialRow, leaderboard_table, winner_of
from dgnet_platform.search.report.results import Results
from dgnet_platform.search.sharing import Costs, SharingPlan, plan_sharing, simulated_ends
from dgnet_platform.search.space import Space, Value
from dgnet_platform.search.study import FILE
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.tracking.client import TrackedRun
from dgnet_platform.training.driver import train
from dgnet_platform.training.interrupts import in_thread, stop_on_signals
from dgnet_platform.training.plan import check_free, named_teacher

_LAPTOP, _PAPER = Costs(0.18, 0.25), Costs(1.0, 1.32, seconds=False)
COSTS: dict[Preset, Costs] = {
    "laptop": _LAPTOP, "paper": _PAPER, "release": _PAPER, "strong-laptop": _LAPTOP, "strong": _PAPER,
}  # fmt: skip
"""An iteration before and after the warm-up start: on two CPU cores, and of the paper's size as a ratio."""


def search_and_show(options: TuneMarket, base: DGNetExperiment, space: Space, console: Console) -> int:
    """Search, and show what came out; returns the exit status."""
    check_base(base, options.search)  # before a teacher is trained for it
    check_compared(base)
    if options.dry_run:
        _show_plan(options, base, space, console)
        return DONE
    return _search(options, with_data(options.preset, base, console), space, console)


# ------------------------------------------------------------------------------------------------------------
# The search


def _search(options: TuneMarket, base: DGNetExperiment, space: Space, console: Console) -> int:
    announce(base, console)
    for line in length_lines(options.preset, base)[1:]:
        console.print(line)
    teacher = None
    if base.model.needs_teacher:
        teacher = named_teacher(base)
        if teacher is None:
            trained = train(on_a_worker(teacher_of(base), options.search), console=console)
            if trained.outcome.ending != "finished":
                console.print("Stopped while the teacher was trained: the same command resumes.", style="yellow")
                return STOPPED
            teacher = trained.run.last_checkpoint
    config = options.search
    planned = plan_search(base, space, config, name=options.name, preset=options.preset, teacher=teacher)
    try:
        planned.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"--storage: {planned.folder} cannot be made ({error}): name another folder") from None
    archive = archive_of(base)
    if archive is not None:
        archive.check()
    with training_alone(planned.folder):
        if archive is not None and not (planned.folder / FILE).exists() and archive.fetch(planned.folder):
            console.print(f"Brought search {planned.name} back from {archive.location}.")
        placement = place_search(planned)
        if not (planned.folder / FILE).exists():  # another one has made room for itself, or is only looked at
            check_free(planned.folder, base.model, (base.keep + 2) * placement.concurrent)
        search = Search(planned, placement)
        search.study.set_target(*_wanted(options, search))
        results = Results(planned, search.study)
        _run(search, results, console)
        rows = results.rated_rows()
        best = results.publish(rows, search.trials.tracked.run)
        if not search.trials.bring_to_archive():
            console.print(
                f"The archive {base.archive} does not take the search. Nothing is lost here: the same command brings"
                " the rest there.",
                style="yellow",
            )
    _say_goodbye(results, rows, best, search.trials.tracked.run, console)
    if not results.complete:
        return STOPPED
    return _retrain(results, rows, console) if options.retrain else DONE


def on_a_worker(experiment: Kind, config: SearchConfig) -> Kind:
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


def _say_goodbye(
    results: Results, rows: Sequence[TrialRow], best: Path | None, tracked: TrackedRun, console: Console
) -> None:
    """The leaderboard, what it took, and where to look."""
    plan, study, costs = results.plan, results.study, results.costs()
    lines = [
        f"{costs['spent']:,} iterations trained; {costs['without_sharing']:,} without shared prefixes,"
        f" {costs['without_stopping']:,} without early stopping too",
    ]
    finished = sum(row.state == FINISHED for row in rows)
    if finished < ENOUGH:
        lines.append(f"No picture of importances: {finished} trials came to their end, {ENOUGH} have to.")
    if best is not None:
        lines.append(f"Best settings: {best} (jobs/train_market.py --preset {plan.preset} --config takes it)")
    console.print(leaderboard_table(rows, most=20))
    for line in lines:
        console.print(line)
    if not results.complete:
        left = study.missing + len(study.running)
        console.print(f"Stopped with {left} trials left: the same command resumes from there.", style="yellow")
    look = where_to_look(tracked.uri, tracked.experiment, tracked.id, report=True)
    console.print(f"Curves and pictures of search {plan.name}: {look}", style="green")


def _retrain(results: Results, rows: Sequence[TrialRow], console: Console) -> int:
    """Train the best trial's settings on all training identities."""
    plan, best = results.plan, winner_of(rows)
    if best is None:
        raise TrainingError("--retrain: no trial is finished")
    base, people = plan.base, needed_classes(plan.store, hold_out=False)
    model = replace(results.settings(best.number), num_classes=people)
    experiment = replace(
        base,
        name=f"{plan.name}-best-{best.number:03d}",
        hold_out=False,
        model=model,
        baseline=replace(base.baseline, num_classes=people),
        teacher="auto",
    )
    trained = train(on_a_worker(experiment, plan.config), console=console)
    console.print(f"Trained on all {people:,} identities: {trained.run.last_checkpoint}")
    return DONE if trained.outcome.ending == "finished" else STOPPED


# ------------------------------------------------------------------------------------------------------------
# The plan


def simulated(options: TuneMarket, base: DGNetExperiment, space: Space) -> SharingPlan:
    """What the search would share if its results were drawn by lot and its trials at random."""
    count = int(options.trials.removeprefix("+") or TRIALS[options.preset])
    points: list[dict[str, Value]] = [{}, *space.draw(count - 1, options.seed)]
    configs = [space.apply(base.model, values) for values in points]
    every = base.evaluate_every
    distances = space.distances(base.model, options.stopping, every)
    ends = simulated_ends(configs, options.stopping, options.seed, at=distances, every=every)
    return plan_sharing(configs, ends, costs_of(options))


def costs_of(options: TuneMarket | PaperTables) -> Costs:
    """What an iteration costs, as it was measured, or else about."""
    if options.seconds_before is not None and options.seconds_after is not None:
        return Costs(options.seconds_before, options.seconds_after)
    return COSTS[options.preset]


def _siblings_cost(options: TuneMarket, base: DGNetExperiment, planned: SharingPlan, space: Space) -> list[str]:
    """What the control and the confirmation take beside the trials."""
    costs, lines = planned.costs, []

    def told(shared: SharingPlan) -> str:
        if costs.seconds:
            return f"{shared.steps_with:,} iterations, {shared.cost_with / 3600:,.2f} GPU-hours"
        share = f"{shared.cost_with / planned.cost_with:.0%} of what the trials cost"
        return f"{shared.steps_with:,} iterations, {share}; --seconds-before and --seconds-after give hours"

    last = base.model.iterations
    if options.stopping.needs_control:
        alone = plan_sharing([base.model], [last], costs)
        lines.append(f"The control, by which trials are judged: at most {told(alone)}.")
    if options.confirm:
        points: list[dict[str, Value]] = [{}, *space.draw(CONFIRMED, options.seed)]
        again = [
            replace(space.apply(base.model, values), seed=base.model.seed + 1 + seed)
            for seed in range(options.confirm)
            for values in points
        ]
        shared = plan_sharing(again, [last] * len(again), costs)
        lines.append(
            f"Confirmation: the preset and the best {CONFIRMED} trials with {options.confirm} other seeds each:"
            f" {told(shared)}."
        )
    return lines


def _show_plan(options: TuneMarket, base: DGNetExperiment, space: Space, console: Console) -> None:
    """Print what all trials have in common, what is searched, and what it comes down to."""
    console.print(yaml.safe_dump(to_dict(base), sort_keys=False, allow_unicode=True))
    console.print(space)
    for line in length_lines(options.preset, base):
        console.print(line)
    planned_sharing = simulated(options, base, space)
    console.print(planned_sharing)
    for line in _siblings_cost(options, base, planned_sharing, space):
        console.print(line, highlight=False)
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
            lines.append(_next_action(planned))
    for line in lines:
        console.print(line)


def _next_action(planned: SearchPlan) -> str:
    there = (planned.folder / FILE).exists()
    return f"search {planned.name} would {'resume' if there else 'start'} in {planned.folder}"
