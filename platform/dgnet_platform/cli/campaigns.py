"""What commands of many runs share: they train what is missing on a cluster, while bars show how far it is."""

from typing import Any

from rich.console import Console

from dgnet_platform.cli.options import RunsAtOnce
from dgnet_platform.cli.terminal import progress_bars
from dgnet_platform.compute import cluster
from dgnet_platform.compute.placement import Placement, place_trials
from dgnet_platform.tables.campaign import Campaign
from dgnet_platform.tables.machines import RayMachines
from dgnet_platform.training.interrupts import in_thread, stop_on_signals
from dgnet_platform.training.plan import check_free, check_shares


def train_missing(options: RunsAtOnce, campaign: Campaign[Any], console: Console) -> None:
    """Train what is missing of a campaign that is open."""
    assert campaign.tracked is not None
    needed = campaign.plan.all_experiments
    left = [experiment for experiment in needed if not campaign.state(experiment).finished]
    campaign.catch_up()
    if not left and not campaign.untested:
        return
    workers = options.workers_per_run
    for experiment in left:
        check_shares(experiment.model, range(workers, workers + 1), f"--workers-per-run {workers}")
    kinds = {type(experiment.model): experiment for experiment in left}  # a teacher is smaller than what it teaches
    for kind, experiment in kinds.items():
        count = sum(type(other.model) is kind for other in left)
        check_free(campaign.folder, experiment.model, (experiment.keep + 1) * count)
    machines = RayMachines(_place(options, campaign.tracked.uri), campaign.folder)
    total = sum(experiment.model.iterations for experiment in needed)
    with progress_bars(console) as show, stop_on_signals(campaign, console.print, "runs save and stop"):

        def follow() -> None:
            states = [campaign.state(experiment) for experiment in needed]
            show("runs", sum(state.finished for state in states), len(states))
            show("iterations, with those that are shared", sum(state.iterations for state in states), total)

        follow()
        in_thread(lambda: campaign.train(machines, console.print), follow)


def _place(options: RunsAtOnce, uri: str) -> Placement:
    cluster.join_ray()
    cluster.check_tracking(uri)
    return place_trials(
        cluster.nodes(), workers=options.workers_per_run, gpus=options.gpus_per_run, concurrent=options.concurrent
    )
