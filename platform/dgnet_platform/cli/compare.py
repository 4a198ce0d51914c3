"""The command that compares generators: trains those that are asked for, measures all, and shows the table."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dgnet_platform.cli.options import CompareGenerators
from dgnet_platform.cli.terminal import DONE, STOPPED, progress_bars
from dgnet_platform.cli.train import drawn_store, with_data
from dgnet_platform.data.held_out import needed_classes
from dgnet_platform.data.store import Store
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.compare import compare, markdown, write
from dgnet_platform.evaluation.results import replacing
from dgnet_platform.runs.experiment import AnyExperiment
from dgnet_platform.runs.presets import ComparedName, compared_experiment
from dgnet_platform.runs.run import Run
from dgnet_platform.training.driver import train


def compare_and_show(options: CompareGenerators, console: Console) -> int:
    """Train what is asked for, compare, write figure and tables, and show the table; returns the exit status."""
    checkpoints = list(options.checkpoint)
    store = options.store
    for method in options.train:
        experiment = with_data(options.preset, _experiment(options, method, store), console)
        store = experiment.data
        trained = train(experiment, console=console)
        if trained.outcome.ending != "finished":
            console.print("Stopped: the same command resumes.", style="yellow")
            return STOPPED
        checkpoints.append(trained.checkpoint)
    config = replace(options, store=store or str(drawn_store(options.storage, options.preset)))
    if config.teacher is None:
        config = replace(config, teacher=_teacher(checkpoints))
    with replacing(config.out) as folder, progress_bars(console) as progress:
        comparison = compare(config, checkpoints, progress)
        write(comparison, folder)
    console.print(Text(markdown(comparison)))
    for reason in comparison.left_out:
        console.print(f"Left out: {printable(reason)}", style="yellow", highlight=False)
    console.print(f"Figure and tables are in {printable(str(config.out))}.", style="green")
    return DONE


def _experiment(options: CompareGenerators, method: ComparedName, store: str) -> AnyExperiment:
    """The experiment of one method, on all training identities of the same store."""
    if store:
        opened = Store.open(store)
        classes, pictures = needed_classes(opened, hold_out=False), opened.count("train")
    else:
        classes = pictures = None
    experiment = compared_experiment(method, options.preset, classes, pictures, options.iterations)
    workers = str(options.workers)
    return replace(
        experiment,
        data=store,
        storage=options.storage,
        tracking_uri=options.tracking_uri,
        workers=workers,
        gpus=options.gpus,
    )


def _teacher(checkpoints: list[Path]) -> Path | None:
    """The teacher that one of the runs was trained with: it measures all of them."""
    for path in checkpoints:
        run = Run.find(path.resolve().parent)
        if run is not None and run.teacher:
            return Path(run.teacher)
    return None
