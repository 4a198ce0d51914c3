#!/usr/bin/env python
"""What shared prefixes save in a search of paper size: `uv run jobs/bench_search.py`.

64 trials of 100K iterations: the paper's setting and 63 random points of the default space, whose warm-up starts stand
on a grid from 10K to 50K, under halving whose results are a random permutation. Nothing is trained: iterations are
counted by the plan that the search itself uses, and an iteration before and after the warm-up start costs what it takes
here at laptop size, or --before and --after seconds measured elsewhere (jobs/bench_step.py does, of any size).

What bounds the ratio: only what comes before a trial's warm-up start is shared, so however many trials share it, the
ratio stays below 1 + B / A, where B is what a trial costs before its start and A what it costs after (the column
`bound`). A is the ramp, the way to the rung at which halving stops it, and for the best few the whole rest of the run,
and an iteration costs more there than before (`fewer` counts iterations, `cheaper` their time). The prefixes themselves
take the rest: each value of what acts from the first iteration (lambda_img, lambda_id, learning rates) needs one of its
own, as long as the latest start on it.

Evaluations, checkpoints and start-up are not counted.
"""

import math
import time
from collections.abc import Callable
from statistics import mean

import numpy as np
import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dgnet_core.dgnet.config import DGNetConfig, laptop, paper
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Position
from dgnet_core.learning.memory import keep_freed_memory
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.search.sharing import Costs, SharingPlan, plan_sharing, simulated_ends
from dgnet_platform.search.space import Space
from dgnet_platform.search.stopping import StoppingRule

CLASSES = 751


def stepper(config: DGNetConfig, iteration: int) -> Callable[[], None]:
    """Trains on random pictures, from this iteration on, one at a call."""
    state = TrainState.build(config, teacher=Teacher(config.network, CLASSES), pretrained=False)
    state.iteration = iteration
    rng = torch.Generator().manual_seed(0)
    size = config.network.height, config.network.width
    pixels = torch.randint(256, (4, config.batch_size, 3, *size), dtype=torch.uint8, generator=rng)
    labels = torch.randint(CLASSES, (2, config.batch_size), generator=rng)

    def step() -> None:
        position = Position(seed=config.seed, iteration=state.iteration)
        train_step(state, training_batch(pixels, labels, position, config), config)

    return step


def measured(steps: int) -> Costs:
    """Best processor times of an iteration of laptop size on one thread, in turns: other work matters little."""
    keep_freed_memory()
    torch.set_num_threads(1)
    config = laptop(CLASSES)
    phases = {"before": stepper(config, 0), "after": stepper(config, ramp_end(config) + 1)}
    best = dict.fromkeys(phases, math.inf)
    for number in range(steps + 1):
        for name, step in phases.items():
            start = time.process_time()
            step()
            if number:  # the first one warms up
                best[name] = min(best[name], time.process_time() - start)
    return Costs(best["before"], best["after"])


def plans(space: Space, stopping: StoppingRule, costs: Costs, trials: int, draws: int) -> list[SharingPlan]:
    """Plans of some random searches."""
    base, found = paper(CLASSES), []
    every = base.iterations // 20  # as in a search
    distances = space.distances(base, stopping, every)
    for seed in range(draws):
        configs = [base, *(space.apply(base, values) for values in space.draw(trials - 1, seed))]
        found.append(plan_sharing(configs, simulated_ends(configs, stopping, seed, distances, every), costs))
    return found


def bound(found: SharingPlan) -> float:
    """The ratio if prefixes cost nothing."""
    return found.cost_without / (found.steps_after * found.costs.after)


def main(
    trials: int = 64,
    draws: int = 30,
    steps: int = 10,
    before: float | None = None,
    after: float | None = None,
    rungs: int = StoppingRule.rungs,
    eta: int = StoppingRule.eta,
    first: float = StoppingRule.first,
) -> None:
    """Measure and print a table.

    Args:
        trials: Of the search.
        draws: Random searches that the figures are means of.
        steps: Timed iterations of each phase.
        before: Seconds of an iteration before the warm-up start; with --after, nothing is measured.
        after: Seconds of an iteration after it.
        rungs: How often a trial is judged.
        eta: One trial of so many continues at a rung.
        first: Where the first rung stands, a share of what is left after the latest ramp end.
    """
    if (before is None) != (after is None):
        raise SystemExit("--before and --after: give both, or none")
    console = Console()
    costs = measured(steps) if before is None or after is None else Costs(before, after)
    how = f"best of {steps} at laptop size, one CPU thread" if before is None else "as given"
    console.print(
        f"An iteration: {1000 * costs.before:.1f} ms before the warm-up start, {1000 * costs.after:.1f} ms after,"
        f" {costs.after / costs.before:.2f} times as much ({how}).",
        highlight=False,
        soft_wrap=True,
    )
    default = Space.default(paper(CLASSES))
    identities = default.overridden({"generated_identity": {"choices": [0.25, 0.5, 1.0]}})
    halving, none = StoppingRule(rungs=rungs, eta=eta, first=first), StoppingRule(kind="none")
    searches = [
        (default, halving),
        (default, StoppingRule(first=0.12)),
        (identities, halving),
        (default, none),
    ]
    title = f"{trials} trials of 100K iterations, means of {draws} random searches"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("lambda_id", "rungs", "K alone", "K shared", "fewer", "cheaper", "10-90 %", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    for space, stopping in searches:
        found = plans(space, stopping, costs, trials, draws)
        low, high = np.quantile([one.ratio for one in found], (0.1, 0.9))
        table.add_row(
            "fixed" if space is default else "3 values",
            "none" if stopping.kind == "none" else str(stopping.rungs),
            f"{mean(one.steps_without for one in found) / 1000:,.0f}",
            f"{mean(one.steps_with for one in found) / 1000:,.0f}",
            f"{mean(one.steps_without / one.steps_with for one in found):.2f}",
            f"{mean(one.ratio for one in found):.2f}",
            f"{low:.1f}-{high:.1f}",
            f"{mean(map(bound, found)):.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
