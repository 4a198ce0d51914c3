"""Rungs and verdicts: which trials stop early."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_platform.runs.journal import Tail
from dgnet_platform.storage.files import lock, naming

Kind = Literal["halving", "none"]
Clock = Literal["gain", "metric"]
LEAST_FIRST = 0.1
"""The smallest share of what is left after the ramp at which a trial may be judged."""
WAIT = 1.0
"""Seconds between looks at the control's journal."""


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When trials are judged, and which ones continue."""

    kind: Kind = "halving"
    """halving: the best 1/eta of those that have come so far, of these at the next rung the best 1/eta, and so on;
    none: all."""
    by: Clock = "gain"
    """What trials are compared by at a rung. gain: over a control that never feeds generated pictures back, at the same
    iteration; metric: mAP itself, as is usual, which favours late warm-up starts."""
    rungs: int = 2
    """How often a trial is judged."""
    eta: int = 3
    """One trial of so many continues at a rung; and a rung stands so many times further from the ramp's end than the
    one before."""
    first: float = 0.2
    """Where the first rung stands: a share of what is left of the run after the latest ramp end of all trials."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"stopping.kind = {self.kind!r}: choose one of {', '.join(get_args(Kind))}")
        if self.by not in get_args(Clock):
            raise ValueError(f"stopping.by = {self.by!r}: choose one of {', '.join(get_args(Clock))}")
        if self.rungs < 1:
            raise ValueError(f"stopping.rungs = {self.rungs}: at least 1; kind = 'none' never stops a trial early")
        if self.eta < 2:
            raise ValueError(f"stopping.eta = {self.eta}: at least 2, for 1 / eta of the trials continue at a rung")
        if not self.first >= LEAST_FIRST:
            raise ValueError(
                f"stopping.first = {self.first}: at least {LEAST_FIRST}, earlier nothing is learned yet of what trials"
                " differ in"
            )
        last = self.first * self.eta ** (self.rungs - 1)
        if not last < 1:
            raise ValueError(
                f"stopping.first = {self.first}: with {self.rungs} rungs and eta = {self.eta} the last rung would stand"
                f" at {last:g} of what is left after the ramp, beyond the end: use less than"
                f" {1 / self.eta ** (self.rungs - 1):.4g}, or fewer rungs"
            )

    @property
    def needs_control(self) -> bool:
        """Whether trials are compared with a run beside them."""
        return self.kind != "none" and self.by == "gain"


def distances(remaining: int, stopping: StoppingRule, every: int = 1) -> tuple[int, ...]:
    """How many iterations after its ramp's end every trial is judged at the earliest; none for kind "none".

    Args:
        remaining: iterations that are left of the run after the latest ramp end of all trials, so that each of them
            has all rungs.
        stopping: how many rungs, and where.
        every: iterations between evaluations; a trial is judged at the first one that is far enough.

    Raises:
        ValueError: the run is too short for so many rungs.
    """
    if stopping.kind == "none":
        return ()
    found = tuple(math.ceil(stopping.first * remaining * stopping.eta**rung) for rung in range(stopping.rungs))
    apart = all(later - earlier >= every for earlier, later in pairwise(found))
    if remaining < 2 or not apart or found[-1] + every > remaining:
        raise ValueError(
            f"{max(0, remaining)} iterations are left after the latest ramp end: too few for {stopping.rungs} rungs"
            f" from a share of {stopping.first} on, with an evaluation every {every}; use longer runs, earlier warm-up"
            " starts, shorter ramps, a smaller evaluate_every or fewer rungs"
        )
    return found


def rungs_of(config: DGNetConfig, distances: Sequence[int], every: int = 1) -> tuple[int, ...]:
    """Iterations done when a trial is judged: strictly after its own ramp end, and before its end.

    All runs of a search are evaluated there, so that a trial can be compared with the control at the same iteration.

    Args:
        config: the trial.
        distances: from the ramp's end, rising.
        every: iterations between evaluations, on which rungs stand.

    Raises:
        ValueError: a rung would stand before the warm-up is over, or not before the run's end.
    """
    end = ramp_end(config)
    rungs = tuple(math.ceil((end + distance) / every) * every for distance in distances)
    for distance, rung in zip(distances, rungs, strict=True):
        if distance < 1:
            raise ValueError(f"a rung at distance {distance}: it must stand after the ramp's end, iteration {end:,}")
        if rung >= config.iterations:
            raise ValueError(
                f"a rung at iteration {rung:,}, {distance:,} after the ramp's end: it must stand before the"
                f" run's end, iteration {config.iterations:,}; use an earlier warm-up start or longer runs"
            )
    return rungs


def rates_at(config: DGNetConfig, iterations: Sequence[int]) -> tuple[int, ...]:
    """How many milestones of the learning rate a run has passed after so many iterations each; a cosine has none."""
    milestones = config.optim.milestones if config.optim.cosine_end is None else ()
    return tuple(sum(milestone <= done for milestone in milestones) for done in iterations)


def keeps(value: float, others: Sequence[float], stopping: StoppingRule, most: int | None = None) -> bool:
    """Whether a trial continues from a rung, by what is known when it gets there.

    Halving is asynchronous: no trial waits at a rung, each continues if it is among the best of those that have reached
    it so far, itself included. So the first always continues, and equal ones do together.

    Args:
        value: the trial's, larger is better; NaN never continues.
        others: those of the trials that came to the rung before.
        stopping: which rule.
        most: how many are the best, for halving; None: ceil(n / eta) of the n at this rung.
    """
    if stopping.kind == "none":
        return True
    if math.isnan(value):
        return False
    known = [other for other in others if not math.isnan(other)]
    most = math.ceil((len(others) + 1) / stopping.eta) if most is None else most
    return sum(other > value for other in known) < most


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided about a trial at a rung; a line of the file of verdicts."""

    trial: int
    """Its number."""
    rung: int
    """The rung's name, the same for all trials: its place or its distance from the ramp's end."""
    value: float
    """What it was judged by, larger is better."""
    goes_on: bool
    """Whether it was kept."""
    rates: tuple[int, ...] = ()
    """Milestones of the learning rate that it has passed at each of its rungs."""


def goes_on(
    trial: int,
    rung: int,
    value: float,
    known: Sequence[Verdict],
    stopping: StoppingRule,
    rates: tuple[int, ...] = (),
) -> bool:
    """Whether a trial continues from a rung, by the verdicts of the search before.

    It is compared with those that had passed as many milestones of the learning rate at each of their rungs: what a
    lower rate gains has nothing to do with what trials differ in.

    Of n trials so far, halving wants ceil(n / eta^k) to get past the k-th rung (Li et al., ASHA). Early arrivals get
    past it too easily; at the next rung they would make up the n of which a share continues. So the number is taken
    from n itself: a trial that is among the best n / eta^k of all always continues, and others seldom do.

    Args:
        trial: its number.
        rung: the rung's place or distance, the same for all trials.
        value: the trial's at this rung, larger is better.
        known: the verdicts before, in any order.
        stopping: which rule.
        rates: as in Verdict.
    """
    known = [verdict for verdict in known if verdict.rates == rates]
    others = [verdict.value for verdict in known if verdict.rung == rung]
    place = 1 + len({verdict.rung for verdict in known if verdict.trial == trial})
    trials = len({trial, *(verdict.trial for verdict in known)})
    return keeps(value, others, stopping, most=math.ceil(trials / stopping.eta**place))


class Verdicts:
    """The verdicts of a search: a file of JSON lines that all its trials share, from any process.

    It is locked while a verdict is found and written, and each verdict is on the disk before it is returned. Half a
    line, left by a process that was killed, counts for nothing.
    """

    def __init__(self, path: Path):
        """Keep them in the file at `path`, which the first verdict makes; its folder must exist."""
        self.path = path

    def judge(self, trial: int, rung: int, value: float, stopping: StoppingRule, rates: tuple[int, ...] = ()) -> bool:
        """Whether a trial continues. Asked again for the same trial and rung, the first verdict stands.

        Args:
            trial: its number.
            rung: the rung's place or distance, the same for all trials.
            value: the trial's at this rung, larger is better.
            stopping: which rule.
            rates: as in Verdict.

        Raises:
            OSError: the file cannot be read or written.
        """
        with naming(self.path), self.path.open("a+b") as file:
            lock(file)
            known = _verdicts(file)
            for verdict in known:
                if (verdict.trial, verdict.rung) == (trial, rung):
                    return verdict.goes_on
            kept = goes_on(trial, rung, value, known, stopping, rates)
            verdict = Verdict(trial=trial, rung=rung, value=float(value), goes_on=kept, rates=rates)
            file.truncate(_whole(file))
            file.write(json.dumps(asdict(verdict)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return verdict.goes_on

    def verdicts(self) -> list[Verdict]:
        """All verdicts so far, in the order in which they were given."""
        try:
            with self.path.open("r+b") as file:
                lock(file)
                return _verdicts(file)
        except FileNotFoundError:
            return []


@dataclass(frozen=True, kw_only=True)
class RungJudge:
    """Compares a trial with the others at its rungs; what the training loop is handed as its judge.

    It is judged by its gain over the control, a run that never feeds generated pictures back, at the same iteration:
    how long each has trained on real pictures then has no say. Where trials differ in what starts with the warm-up
    alone, they are the control up to there, bit for bit, so that the gain has little noise. Without a control a trial
    is judged by the figure itself.
    """

    book: Path
    """The file with all trials' figures and the verdicts on them."""
    control: Path | None
    """Folder of the control, which is evaluated at all rungs; it may be under way. None: there is none."""
    stop_file: Path
    """Ends the wait for the control."""
    trial: int
    """Its number."""
    rungs: tuple[int, ...]
    """Its iterations at which it is judged, in order."""
    rates: tuple[int, ...]
    """As in Verdict."""
    rule: StoppingRule
    """Which trials continue."""
    metric: str
    """What it is judged by."""

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> str | None:
        """Why the trial has to stop at an iteration, or nothing; None: it was asked to stop and is not judged yet."""
        if iteration not in self.rungs:
            return ""
        rung, value = self.rungs.index(iteration), metrics[self.metric]
        told = f"{100 * value:.2f} points of {self.metric}"
        if self.control is not None:
            control = self._figure_of(self.control, iteration)
            if control is None:
                return None
            value -= control
            told = f"gain of {100 * value:+.2f} points of {self.metric} over no feeding"
        if Verdicts(self.book).judge(self.trial, rung, value, self.rule, self.rates):
            return ""
        return f"{told} at iteration {iteration}, rung {rung + 1} of {len(self.rungs)}"

    def _figure_of(self, control: Path, iteration: int) -> float | None:
        """The control's figure at an iteration, once it is there; None: asked to stop before."""
        tail = Tail(control, after=iteration - 1)
        while True:
            for entry in tail.read():
                if entry.iteration == iteration and self.metric in entry.metrics:
                    return entry.metrics[self.metric]
            if self.stop_file.exists():
                return None
            time.sleep(WAIT)


def _verdicts(file: BinaryIO) -> list[Verdict]:
    file.seek(0)
    lines = file.read().split(b"\n")[:-1]  # what follows the last line break is half a line, or nothing
    return [verdict for line in lines if (verdict := _parse(line)) is not None]


def _parse(line: bytes) -> Verdict | None:
    """The verdict of a line, or None for a line that a crash left damaged."""
    try:
        values: dict[str, Any] = json.loads(line)
        values["rates"] = tuple(values.get("rates", ()))
        return Verdict(**values)
    except (ValueError, TypeError, AttributeError):
        return None


def _whole(file: BinaryIO) -> int:
    """Bytes of the file up to and with its last line break."""
    file.seek(0)
    return file.read().rfind(b"\n") + 1
