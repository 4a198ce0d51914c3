"""The training loop on each rank: step, evaluate, save, report."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray.train
import torch
from torch import Tensor

from dgnet_core.learning.health import raise_fault
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.journal import Journal, read
from dgnet_platform.runs.run import Outcome, Run
from dgnet_platform.training.collectives import average, broadcast, check_same, ranks
from dgnet_platform.training.learner import Learner
from dgnet_platform.training.validation import Validator, save_pictures, save_queries

Statistics = dict[str, dict[str, Tensor]]
Judge = Callable[[int, Mapping[str, float]], str | None]
"""Called on rank 0 with an iteration and its figures. Returns why the run has to stop there, "" to continue, or None if
the run was asked to stop before the answer was known."""


def node_is_leaving() -> bool:
    """Whether a node of this run is about to be taken away; every rank has to ask."""
    return ray.train.get_preemption_info() is not None


def run_loop(
    run: Run,
    learner: Learner,
    validator: Validator,
    *,
    report: Callable[[dict[str, Any]], None],
    judge: Judge | None = None,
    asked_to_stop: Callable[[], bool] | None = None,
    leaving: Callable[[], bool] = node_is_leaving,
) -> Outcome:
    """Train up to the configured iteration.

    Args:
        run: where checkpoints, journal and pictures go.
        learner: this rank's part.
        validator: called on rank 0.
        report: called on every rank with the newest figures whenever the run was evaluated or saved.
        judge: asked at the iterations of `evaluate_also`, once they are evaluated; again when the run resumes there.
        asked_to_stop: called on every rank; whether the run has to save and end. By default, its stop file exists.
        leaving: called on every rank; whether a node of the run will soon be taken away, so that it has to save.

    Returns:
        How it ended. "finished": at its last iteration. "stopped": it was asked to, and has saved. "stopped early": the
        judge has said so. "diverged": a loss or gradient was not finite, and starting again would only repeat it.
    """
    experiment, state = run.experiment, learner.state
    last = learner.config.iterations if run.until is None else run.until
    journal = Journal(run.folder, state.iteration) if ranks()[0] == 0 else None
    window, saved_for_it = _Window(learner), False
    asked_to_stop = asked_to_stop or (lambda: run.stop_asked)
    try:
        if ended := _judged(run, judge, state.iteration, None):
            return ended
        while state.iteration < last:
            fault = ""
            try:
                window.add(learner.advance())
            except FloatingPointError as error:
                fault = str(error)
            t = state.iteration
            also = t in experiment.evaluate_also
            evaluates = also or t % experiment.evaluate_every == 0 or (t == last and run.until is None)
            saves = also or t % experiment.checkpoint_every == 0 or t == last
            if not (fault or evaluates or saves or t % experiment.log_every == 0):
                continue
            lines, (stop, node_leaves) = window.fetch(asked_to_stop(), leaving())
            saves |= node_leaves and not saved_for_it  # Ray starts the run again elsewhere, once the node is gone
            saved_for_it |= node_leaves
            fault = fault or _fault(learner)
            pictures: dict[str, str] = {}
            statistics: Statistics = {}
            if evaluates and journal is not None and not fault:
                validation = validator(state)
                lines[-1] |= validation.metrics
                pictures = save_pictures(validation.pictures, run.folder, t)
                statistics = validation.statistics
                if validation.queries:
                    save_queries(validation.queries, run.folder, t)
            if journal is not None:
                for number, line in enumerate(lines, t - len(lines) + 1):
                    journal.write(number, line, pictures if number == t else None)
            if fault:
                return Outcome(ending="diverged", iteration=t, reason=fault)
            if saves or stop:
                check_same(state)
                if journal is not None:
                    journal.sync()
                    _save(run, learner, validator, lines[-1], statistics)
            if evaluates or saves or stop:
                report({"iteration": t, **lines[-1]})
            if ended := _judged(run, judge, t, lines[-1]):
                return ended
            if stop and t < last:
                return Outcome(ending="stopped", iteration=t)
        return Outcome(ending="finished", iteration=state.iteration)
    finally:
        if journal is not None:
            journal.close()


def _judged(run: Run, judge: Judge | None, iteration: int, metrics: Mapping[str, float] | None) -> Outcome | None:
    """How the run ends at an iteration by its judge's word, or None if it continues: the same on every rank.

    Without metrics those of the journal are taken: the run resumes where it was perhaps told to stop.
    """
    if iteration not in run.experiment.evaluate_also:
        return None
    reason: str | None = ""
    if judge is not None and ranks()[0] == 0:
        if metrics is None:
            metrics = next((entry.metrics for entry in read(run.folder) if entry.iteration == iteration), None)
        reason = judge(iteration, metrics) if metrics is not None else ""
    reason = broadcast(reason)
    if reason is None:
        return Outcome(ending="stopped", iteration=iteration)
    return Outcome(ending="stopped early", iteration=iteration, reason=reason) if reason else None


def _fault(learner: Learner) -> str:
    """What was not finite in the iterations so far, or nothing; on a GPU this is known when metrics are fetched."""
    try:
        raise_fault(learner.state)
    except FloatingPointError as error:
        return str(error)
    return ""


def _save(run: Run, learner: Learner, validator: Validator, metrics: dict[str, float], statistics: Statistics) -> None:
    """Write a checkpoint and remove those that are no longer kept."""
    checkpoint.save(
        learner.state,
        learner.config,
        run.folder,
        dataset=run.identity["dataset"],
        fingerprint=run.identity["fingerprint"],
        world_size=ranks()[1],
        metrics=metrics,
        statistics=statistics,
    )
    if run.keeps_all:
        return
    best = validator.objective if run.experiment.hold_out else None
    checkpoint.prune(run.folder, keep_last=run.experiment.keep, keep_best=best)


class _Window:
    """Metrics of the iterations since the last fetch. They stay on the device: fetching each would stall it."""

    def __init__(self, learner: Learner):
        self._learner = learner
        self._steps: list[dict[str, Tensor]] = []
        self._since = time.perf_counter()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Keep the metrics of the iteration that is just done."""
        self._steps.append(metrics)

    def fetch(self, *flags: bool) -> tuple[list[dict[str, float]], list[bool]]:
        """Means over ranks of what was added since, a dictionary an iteration, and which flags any rank has raised.

        Every rank calls this at the same iteration. `speed/images_per_second` is the mean since the last call: after
        an evaluation or a checkpoint it contains their time.
        """
        learner, steps = self._learner, self._steps
        values = [value for step in steps for value in step.values()]
        dtype = values[0].dtype if values else torch.float32
        raised = [learner.state.fault.new_full((), float(flag), dtype=dtype) for flag in flags]
        means = torch.stack([*values, *raised])
        average([means], learner.share)
        numbers = means.tolist()
        now = time.perf_counter()
        speed = learner.images_a_step * len(steps) / (now - self._since)
        self._steps, self._since = [], now
        lines: list[dict[str, float]] = []
        remaining = iter(numbers)
        first = learner.state.iteration - len(steps)
        for iteration, step in enumerate(steps, first):
            line = {_title(name): next(remaining) for name in step}
            lines.append({**line, **learner.settings(iteration), "speed/images_per_second": speed})
        return lines, [mean > 0 for mean in numbers[len(values) :]]


def _title(name: str) -> str:
    """A step's metric as it is tracked: by its group. MLflow sorts groups by name, so that losses are seen first."""
    if name.startswith("grad_"):
        return f"monitor/gradient_{name.removeprefix('grad_')}"
    return f"loss/{name}" if name[:2] in ("L_", "D_") else f"monitor/{name}"
