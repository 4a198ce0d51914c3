"""Which trials of a search share what: before its warm-up start a run knows nothing of its ramped weights.

All ramped weights are exactly 0 up to the warm-up start (paper, section 3.3), and what an iteration draws is a function
of its position. So runs that differ only in what comes later are the same in every bit up to there: that prefix is
trained once, and each run is forked from it. Everything here is a pure function of configurations.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dgnet_core.dgnet.config import DGNetConfig, FeedConfig, LossConfig, RecipeConfig, WatchConfig
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.learning.config import Warmup
from dgnet_platform.search.stopping import StoppingRule, Verdict, distances, goes_on, rates_at, rungs_of

NEVER_ENDS = 2**31 - 1
"""Iterations of a canonical prefix, and its warm-up starts: it can be trained for as long as anyone needs it."""


def fork_of(config: DGNetConfig) -> int:
    """Iterations done when a run leaves its prefix: at its earlier warm-up start, or at its end if that comes first."""
    return min(config.loss.code_warmup.start, config.loss.teacher_warmup.start, config.iterations)


def prefix_of(config: DGNetConfig) -> DGNetConfig:
    """The canonical run that equals this one in every bit for the first `fork_of(config)` iterations.

    What cannot matter before the warm-up start has one canonical value: maxima, alpha and slopes of ramped weights, the
    starts themselves, which generated images are fed, and how they are fed and read back, the run's length, the weight
    of f_fine, which has learned nothing yet, and when a surge is reported. The prefix needs a teacher only to start its
    trunk from it. All else is kept: whoever adds a field need not think of prefixes, they are then shared less, but
    never wrongly.
    """
    never = Warmup(start=NEVER_ENDS, slope=1.0)
    unused = LossConfig()
    return replace(
        config,
        iterations=NEVER_ENDS,
        beta=DGNetConfig.beta,
        loss=replace(
            config.loss,
            appearance_code=unused.appearance_code,
            structure_code=unused.structure_code,
            cycle=unused.cycle,
            prim=unused.prim,
            alpha=unused.alpha,
            code_warmup=never,
            teacher_warmup=never,
        ),
        recipe=replace(
            config.recipe,
            reencode_probability=RecipeConfig.reencode_probability,
            code_teaches_decoder=RecipeConfig.code_teaches_decoder,
            soft_label="none",
            teacher_dropout=RecipeConfig.teacher_dropout,
            features=RecipeConfig.features,
            online_feeding=RecipeConfig.online_feeding,
        ),
        feed=FeedConfig(),
        watch=replace(config.watch, factor=WatchConfig.factor, floor=WatchConfig.floor),
    )


@dataclass(frozen=True)
class Costs:
    """What an iteration costs."""

    before: float
    """Seconds of an iteration before the warm-up start, or any other unit."""
    after: float
    """The same of one after it, with all terms."""
    seconds: bool = True
    """Whether these are seconds on one device; otherwise only their ratio means something."""

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"Costs.{name} = {getattr(self, name)}: must be positive and finite")


@dataclass(frozen=True, kw_only=True)
class Fork:
    """Where trials leave a prefix."""

    iteration: int
    """Iterations done on the prefix."""
    trials: tuple[int, ...]
    """Their places in the plan, rising."""


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """A shared first part, and who leaves it where."""

    config: DGNetConfig
    """As `prefix_of` gives it."""
    forks: tuple[Fork, ...]
    """By rising iteration."""

    @property
    def iterations(self) -> int:
        """How far it is trained: to its last fork."""
        return self.forks[-1].iteration

    @property
    def trials(self) -> tuple[int, ...]:
        """All trials that start from it, rising."""
        return tuple(sorted(trial for fork in self.forks for trial in fork.trials))


@dataclass(frozen=True, kw_only=True)
class SharingPlan:
    """What a search trains, with and without shared prefixes. Print it with rich."""

    prefixes: tuple[SharedPrefix, ...]
    """By their first trial."""
    ends: tuple[int, ...]
    """Iteration at which each trial ends."""
    costs: Costs
    steps_before: int
    """Iterations before warm-up starts, if each trial is trained by itself."""
    steps_prefix: int
    """Iterations of the prefixes, which take the place of those."""
    steps_after: int
    """Iterations after warm-up starts, shared or not."""

    @property
    def steps_without(self) -> int:
        """Iterations without sharing."""
        return self.steps_before + self.steps_after

    @property
    def steps_with(self) -> int:
        """Iterations with sharing."""
        return self.steps_prefix + self.steps_after

    @property
    def cost_without(self) -> float:
        """Cost without sharing, in the unit of `costs`."""
        return self.steps_before * self.costs.before + self.steps_after * self.costs.after

    @property
    def cost_with(self) -> float:
        """Cost with sharing, in the unit of `costs`."""
        return self.steps_prefix * self.costs.before + self.steps_after * self.costs.after

    @property
    def ratio(self) -> float:
        """How many times less sharing costs."""
        return self.cost_without / self.cost_with if self.cost_with else 1.0

    def __rich__(self) -> Group:
        """Prefixes with their forks and trials, and the totals."""
        table = Table(title="Shared prefixes", title_justify="left")
        table.add_column("prefix", justify="right")
        table.add_column("lambda_img, lambda_id, learning rates", overflow="fold")
        table.add_column("fork at", justify="right")
        table.add_column("trials", overflow="fold")
        for number, prefix in enumerate(self.prefixes):
            labels = [str(number), _kept(prefix.config)]
            for fork in prefix.forks:
                table.add_row(*labels, f"{fork.iteration:,}", ", ".join(map(str, fork.trials)))
                labels = ["", ""]
            table.add_section()
        totals = Table(title=f"{len(self.ends)} trials", title_justify="left")
        hours = ["GPU-hours"] if self.costs.seconds else ["relative cost"]
        for name in ("", "iterations", *hours):
            totals.add_column(name, justify="right" if name else "left")
        totals.add_row("each trial by itself", f"{self.steps_without:,}", self._cost(self.cost_without))
        totals.add_row("with shared prefixes", f"{self.steps_with:,}", self._cost(self.cost_with))
        steps = self.steps_without / self.steps_with if self.steps_with else 1.0
        totals.add_row("ratio", f"{steps:.2f}", f"{self.ratio:.2f}")
        unit = " s" if self.costs.seconds else ""
        note = (
            f"An iteration: {self.costs.before:.4g}{unit} before the warm-up start, {self.costs.after:.4g}{unit} after."
        )
        return Group(table, totals, Text(note))

    def _cost(self, cost: float) -> str:
        return f"{cost / 3600:,.2f}" if self.costs.seconds else f"{cost / self.costs.before:,.0f}"


def plan_sharing(configs: Sequence[DGNetConfig], ends: Sequence[int], costs: Costs) -> SharingPlan:
    """What a search's trials share.

    Args:
        configs: the trials.
        ends: iteration at which each ends: its full length, or the rung it was stopped at.
        costs: of an iteration.

    Raises:
        ValueError: not as many ends as trials, or an end outside its run.
    """
    if len(configs) != len(ends):
        raise ValueError(f"{len(ends)} ends for {len(configs)} trials: one each is needed")
    for number, (config, end) in enumerate(zip(configs, ends, strict=True)):
        if not 0 <= end <= config.iterations:
            raise ValueError(f"trial {number} ends at iteration {end}: its run has {config.iterations}")
    # A trial that ended before its fork leaves the prefix where it ended.
    leaves = [min(fork_of(config), end) for config, end in zip(configs, ends, strict=True)]
    grouped: dict[DGNetConfig, dict[int, list[int]]] = {}
    for number, config in enumerate(configs):
        grouped.setdefault(prefix_of(config), {}).setdefault(leaves[number], []).append(number)
    prefixes = tuple(
        SharedPrefix(
            config=config,
            forks=tuple(Fork(iteration=at, trials=tuple(trials)) for at, trials in sorted(forks.items())),
        )
        for config, forks in grouped.items()
    )
    return SharingPlan(
        prefixes=prefixes,
        ends=tuple(ends),
        costs=costs,
        steps_before=sum(leaves),
        steps_prefix=sum(prefix.iterations for prefix in prefixes),
        steps_after=sum(ends) - sum(leaves),
    )


def simulated_ends(
    configs: Sequence[DGNetConfig],
    stopping: StoppingRule,
    seed: int,
    at: Sequence[int] | None = None,
    every: int = 1,
) -> list[int]:
    """Where trials would end if their results were a random permutation, the same one at all rungs.

    Trials come to each rung in their own order, as they do one after the other.

    Args:
        configs: the trials.
        stopping: which rule.
        seed: of the permutation.
        at: distances of the rungs from the ramp's end; None: those that suit the latest of these trials.
        every: iterations between evaluations, on which rungs stand.

    Raises:
        ValueError: a trial has no room for the rungs.
    """
    if at is None:
        at = distances(min(c.iterations - ramp_end(c) for c in configs), stopping, every) if configs else ()
    values = list(range(len(configs)))
    random.Random(seed).shuffle(values)
    ends: list[int] = []
    known: list[Verdict] = []
    for trial, (config, value) in enumerate(zip(configs, values, strict=True)):
        end, rungs = config.iterations, rungs_of(config, at, every)
        rates = rates_at(config, rungs)
        for rung, iteration in enumerate(rungs):
            passes = goes_on(trial, rung, value, known, stopping, rates)
            known.append(Verdict(trial=trial, rung=rung, value=value, goes_on=passes, rates=rates))
            if not passes:
                end = iteration
                break
        ends.append(end)
    return ends


def _kept(config: DGNetConfig) -> str:
    """What usually tells prefixes apart."""
    loss, optim = config.loss, config.optim
    rates = f"{optim.appearance_lr:g}, {optim.generator_lr:g}, {optim.discriminator_lr:g}"
    return f"{loss.image:g}, {loss.generated_identity:g}, {rates}"
