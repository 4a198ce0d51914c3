"""The command that compares generators: trains those that are asked for, measures all, and shows the table."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from rich.console import Console
from rich.text import Text

from dgnet_core.methods import METHODS, method_of
from dgnet_platform.cli.campaigns import train_missing
from dgnet_platform.cli.options import CompareGenerators
from dgnet_platform.cli.terminal import DONE, FAILED, STOPPED, progress_bars
from dgnet_platform.cli.train import announce, drawn_store, with_data
from dgnet_platform.data.held_out import needed_classes
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.compare import CSV, FIGURE, MARKDOWN, Comparison, compare, markdown, metrics_of, write
from dgnet_platform.evaluation.results import EvaluationError, replacing
from dgnet_platform.runs.experiment import AnyExperiment
from dgnet_platform.runs.presets import compared_experiment, dgnet_experiment
from dgnet_platform.runs.run import Run, absolute, folder_of, training_alone
from dgnet_platform.runs.tracking_uri import where_to_look
from dgnet_platform.tables.campaign import Campaign
from dgnet_platform.tables.plan import RunsPlan, seeded
from dgnet_platform.tracking.client import UNREACHABLE
from dgnet_platform.tracking.notes import resumes, tell


def compare_and_show(options: CompareGenerators, console: Console) -> int:
    """Train what is asked for, compare, write figure and tables, and show the table; returns the exit status."""
    if options.train:
        return _train_and_compare(options, console)
    _compare(replace(options, store=options.store or str(drawn_store(options.storage, options.preset))), console)
    return DONE


def _train_and_compare(options: CompareGenerators, console: Console) -> int:
    judged = options.teacher or options.inception or options.resnet or _teacher(options.checkpoint)
    if not (judged or any(METHODS[name].taught for name in options.train)):
        raise EvaluationError(
            "no network would say how far pictures are apart: add dgnet to --train, whose teacher does, or name"
            " --teacher, --resnet, or the FID network's file with --inception"
        )
    plan = _plan(options, console)
    campaign = Campaign(plan, comparison_folder(options), any_code=options.any_code)
    campaign.folder.mkdir(parents=True, exist_ok=True)
    settings = {"generators": ", ".join(options.train), "seeds": options.seeds, "preset": options.preset}
    announce(plan.wanted[0], console)
    with training_alone(campaign.folder), campaign.open(settings, plan.wanted[0], kind="comparison") as tracked:
        train_missing(options, campaign, console)
        states = {experiment: campaign.state(experiment) for experiment in plan.wanted}
        missing = [experiment for experiment, state in states.items() if not state.finished]
        for experiment in missing:
            what = f"{method_of(experiment.model).title}, seed {experiment.model.seed}"
            console.print(f"missing: {what}: {printable(states[experiment].reason)}", style="yellow")
        if missing:
            console.print("The same command resumes.", style="yellow")
            stopped = campaign.stop_asked
            tracked.close("KILLED" if stopped else "FAILED", f"{len(missing)} runs are missing")
            return STOPPED if stopped else FAILED
        trained = [state.run.last_checkpoint for state in states.values() if state.run is not None]
        location = plan.own_store.location
        comparison = _compare(replace(options, store=location, checkpoint=(*options.checkpoint, *trained)), console)
        picture = f"Figure 3 is *{FIGURE}*, below *Artifacts*."
        tell(tracked, "\n\n".join([markdown(comparison), picture, resumes(options.out.resolve())]))
        try:
            for name in (FIGURE, MARKDOWN, CSV):
                tracked.log_file(options.out / name)
            tracked.log(metrics_of(comparison), step=len(trained))
            tracked.close("FINISHED")
        except UNREACHABLE as error:
            console.print(f"MLflow has no comparison yet ({error}): run the same command again", style="yellow")
        console.print(f"Runs in MLflow: {where_to_look(tracked.uri, tracked.experiment, tracked.id, report=True)}")
    return DONE


def comparison_folder(options: CompareGenerators) -> Path:
    """Where a comparison's run in MLflow is remembered: one for each --out."""
    place = hashlib.sha256(absolute(str(options.out)).encode()).hexdigest()[:8]
    return folder_of(options.storage, f"comparison-{options.out.name}-{place}")


def _plan(options: CompareGenerators, console: Console) -> RunsPlan:
    """The runs of each method and seed on all training identities.

    Raises:
        StoreError: the store has no query, whose people the figure shows.
    """
    shared = {"storage": options.storage, "tracking_uri": options.tracking_uri}
    drawn = replace(dgnet_experiment(options.preset, 2, 2), data=options.store, **shared)  # where they would be drawn
    location = absolute(with_data(options.preset, drawn, console).data)
    store = Store.open(location)
    if "query" not in store.info.splits:
        raise StoreError(f"{location} has no query, whose people the figure shows: name a store that has one")
    classes, pictures, dataset = needed_classes(store, hold_out=False), store.count("train"), store.info.dataset
    wanted: list[AnyExperiment] = []
    for method in dict.fromkeys(options.train):
        experiment = compared_experiment(method, options.preset, classes, pictures, dataset, options.iterations)
        experiment = replace(experiment, data=location, **shared)
        wanted += [seeded(experiment, seed) for seed in range(options.seeds)]
    return RunsPlan(wanted=tuple(wanted), stores={location: store})


def _compare(options: CompareGenerators, console: Console) -> Comparison:
    """Measure checkpoints, write figure and tables, and show the table."""
    config = options if options.teacher else replace(options, teacher=_teacher(options.checkpoint))
    with replacing(config.out) as folder, progress_bars(console) as progress:
        comparison = compare(config, progress)
        write(comparison, folder)
    for kept in comparison.kept:
        rmtree(kept, ignore_errors=True)
    console.print(Text(markdown(comparison)))
    for reason in comparison.left_out:
        console.print(f"Left out: {printable(reason)}", style="yellow", highlight=False)
    console.print(f"Figure and tables are in {printable(str(config.out))}.", style="green")
    return comparison


def _teacher(checkpoints: Sequence[Path]) -> Path | None:
    """The teacher that one of the runs was trained with: it measures all of them."""
    for path in checkpoints:
        run = Run.find(path.resolve().parent)
        if run is not None and run.teacher:
            return Path(run.teacher)
    return None
