"""The training loop on each rank: restore, step, evaluate, save, report."""

import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.util
import torch
from ray.train.torch import get_device
from torch import Tensor

from dgnet_core.health import raise_fault
from dgnet_core.memory import keep_freed_memory
from dgnet_platform import checkpoint
from dgnet_platform.collectives import agree, average, check_same, gather, ranks
from dgnet_platform.datasets.images import ImageSet, validation_split
from dgnet_platform.datasets.store import Store
from dgnet_platform.evaluation import EvaluateConfig, evaluate
from dgnet_platform.experiment import DGNetExperiment, ExperimentError, TeacherExperiment
from dgnet_platform.halving import Book
from dgnet_platform.journal import Journal, read
from dgnet_platform.learner import DGNetLearner, Learner, TeacherLearner, advance
from dgnet_platform.results import JSON, replacing, write
from dgnet_platform.run import RESULTS, Judging, Run
from dgnet_platform.shipping import Shipper
from dgnet_platform.swaps import people_of
from dgnet_platform.trained import open_teacher
from dgnet_platform.validation import Validator, save_pictures

_log = logging.getLogger(__name__)

Ending = Literal["finished", "stopped", "stopped early", "diverged"]
Judge = Callable[[int, Mapping[str, float]], str]
"""Asked on rank 0 with an iteration and its figures: why the run has to stop there, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the loop ended."""

    ending: Ending
    iteration: int
    reason: str = ""


def train_loop(config: dict[str, str]) -> dict[str, Any]:
    """Train the run in `config["folder"]` until it is finished, asked to stop, or no longer finite.

    Ray Train calls this on each rank.

    Returns:
        The `Outcome` as a dictionary.
    """
    folder = Path(config["folder"])
    try:
        run = Run.read(folder)
    except FileNotFoundError:
        node = socket.gethostname()
        raise ExperimentError(
            f"node {node} does not see {folder}: --storage must be a folder that all machines share, such as NFS"
        ) from None
    keep_freed_memory()
    experiment = run.experiment
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    rank, _ = ranks()
    device = get_device()
    learner, validator = prepare(run, device)
    _restore(run, learner)
    hosts = gather(_host())
    if rank == 0:
        run.note_start(learner.state.iteration, hosts)
    shipper = Shipper.start(folder) if rank == 0 else None
    try:
        outcome = train(run, learner, validator, report=ray.train.report, judge=judge_of(run.judging))
        if outcome.ending == "finished" and rank == 0 and run.role == "run":
            _evaluate(run, learner, device)
    finally:
        if shipper is not None:
            shipper.finish(keep=run.role != "run")
    return asdict(outcome)


def prepare(run: Run, device: torch.device) -> tuple[Learner, Validator]:
    """What a run trains, before its first iteration, and how it is validated.

    Raises:
        ValueError, StoreError, CheckpointError, ImageMemoryError: the data or the teacher cannot be used.
    """
    experiment = run.experiment
    network = experiment.model.network
    store = Store.open(experiment.data)
    load = partial(ImageSet.load, store, height=network.height, width=network.width)
    rank, _ = ranks()
    images = load("train")
    if experiment.hold_out:
        split = validation_split(images)
        images, query, gallery, prefix = split.train, split.query, split.gallery, "val"
    else:
        query, gallery, prefix = (*map(load, ("query", "gallery")), "test") if rank == 0 else (images, images, "test")
    validator = Validator(config=experiment.model, prefix=prefix, query=query, gallery=gallery, people=people_of(store))
    if isinstance(experiment, TeacherExperiment):
        return TeacherLearner(experiment.model, images, device), validator
    teacher = open_teacher(Path(run.teacher), device).teacher if run.teacher is not None else None
    return DGNetLearner(experiment.model, images, device, teacher), validator


def _restore(run: Run, learner: Learner) -> None:
    """Go on from the run's newest whole checkpoint, or from the one it was forked from."""
    found = agree(str(checkpoint.newest(run.folder) or "") if ranks()[0] == 0 else None) or run.origin
    if found:
        checkpoint.load(Path(found), learner.state)
        _log.warning("goes on from %s", found)


def _host() -> str:
    """This machine's name, and its address where it is one of a cluster's."""
    name = socket.gethostname()
    return f"{name} ({ray.util.get_node_ip_address()})" if ray.is_initialized() else name


def judge_of(judging: Judging | None) -> Judge | None:
    """The judge of a trial: compares it with the others at its rungs."""
    if judging is None:
        return None
    book = Book(Path(judging.book))

    def judge(iteration: int, metrics: Mapping[str, float]) -> str:
        if iteration not in judging.rungs:
            return ""
        rung, value = judging.rungs.index(iteration), metrics[judging.metric]
        if book.judge(judging.trial, rung, value, judging.stopping):
            return ""
        return f"{judging.metric} {value:.4f} at iteration {iteration}, rung {rung + 1} of {len(judging.rungs)}"

    return judge


def train(
    run: Run,
    learner: Learner,
    validator: Validator,
    *,
    report: Callable[[dict[str, Any]], None],
    judge: Judge | None = None,
) -> Outcome:
    """Train up to the configured iteration.

    Args:
        run: where checkpoints, journal and pictures go.
        learner: this rank's part.
        validator: called on rank 0.
        report: called on every rank with the newest figures whenever the run was evaluated or saved.
        judge: asked at the iterations of `evaluate_also`, once they are evaluated; again when the run goes on there.

    Returns:
        How it ended. "diverged": a loss or gradient was not finite, and starting again would only repeat it.
    """
    experiment, state = run.experiment, learner.state
    last = learner.config.iterations if run.until is None else run.until
    journal = Journal(run.folder, state.iteration) if ranks()[0] == 0 else None
    window, warned = _Window(learner), False
    try:
        if verdict := _verdict(run, judge, state.iteration, None):
            return Outcome(ending="stopped early", iteration=state.iteration, reason=verdict)
        while state.iteration < last:
            fault = ""
            try:
                window.add(advance(learner))
            except FloatingPointError as error:
                fault = str(error)
            t = state.iteration
            also = t in experiment.evaluate_also
            evaluates = also or t % experiment.evaluate_every == 0 or (t == last and run.until is None)
            saves = also or t % experiment.checkpoint_every == 0 or t == last
            if not (fault or evaluates or saves or t % experiment.log_every == 0):
                continue
            lines, (stop, leaving) = window.fetch(_asked_to_stop(run), _node_is_leaving())
            saves |= leaving and not warned  # Ray starts the run again elsewhere, once the node is gone
            warned |= leaving
            fault = fault or _fault(learner)
            pictures: dict[str, str] = {}
            if evaluates and journal is not None and not fault:
                validation = validator(state)
                lines[-1] |= validation.metrics
                pictures = save_pictures(validation.pictures, run.folder, t)
            if journal is not None:
                for number, line in enumerate(lines, t - len(lines) + 1):
                    journal.write(number, line, pictures if number == t else None)
            if fault:
                return Outcome(ending="diverged", iteration=t, reason=fault)
            verdict = _verdict(run, judge, t, lines[-1])
            if saves or stop:
                check_same(state)
                if journal is not None:
                    journal.sync()
                    _save(run, learner, validator, lines[-1])
            if evaluates or saves or stop:
                report({"iteration": t, **lines[-1]})
            if verdict:
                return Outcome(ending="stopped early", iteration=t, reason=verdict)
            if stop and t < last:
                return Outcome(ending="stopped", iteration=t)
        return Outcome(ending="finished", iteration=state.iteration)
    finally:
        if journal is not None:
            journal.close()


def _verdict(run: Run, judge: Judge | None, iteration: int, metrics: Mapping[str, float] | None) -> str:
    """Why the run has to stop at an iteration, or nothing: the same on every rank.

    Without metrics those of the journal are taken: the run goes on where it was perhaps told to stop.
    """
    if iteration not in run.experiment.evaluate_also:
        return ""
    reason = ""
    if judge is not None and ranks()[0] == 0:
        if metrics is None:
            metrics = next((entry.metrics for entry in read(run.folder) if entry.iteration == iteration), None)
        reason = judge(iteration, metrics) if metrics is not None else ""
    return agree(reason)


def _fault(learner: Learner) -> str:
    """What was not finite in the iterations so far, or nothing; on a GPU this is known when metrics are fetched."""
    try:
        raise_fault(learner.state)
    except FloatingPointError as error:
        return str(error)
    return ""


def _save(run: Run, learner: Learner, validator: Validator, metrics: dict[str, float]) -> None:
    """Write a checkpoint and remove those that are no longer kept."""
    checkpoint.save(
        learner.state,
        learner.config,
        run.folder,
        dataset=run.identity["dataset"],
        fingerprint=run.identity["fingerprint"],
        world_size=ranks()[1],
        metrics=metrics,
    )
    best = validator.objective if run.experiment.hold_out else None
    checkpoint.prune(run.folder, keep_last=run.experiment.keep, keep_best=best)


def _asked_to_stop(run: Run) -> bool:
    """Whether somebody asked this run to stop."""
    return run.stop_asked


def _node_is_leaving() -> bool:
    """Whether a node of this run is about to be taken away; every rank has to ask."""
    return ray.train.get_preemption_info() is not None


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

        Every rank calls this at the same iteration.
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
    """A step's metric as it is tracked: grouped by a prefix."""
    if name.startswith("grad_"):
        return f"gradient/{name.removeprefix('grad_')}"
    return f"loss/{name}" if name[:2] in ("L_", "D_") else f"health/{name}"


def _evaluate(run: Run, learner: Learner, device: torch.device) -> None:
    """Evaluate the finished run on query and gallery of its store, into its results folder; nothing if that is done."""
    out = run.folder / RESULTS
    if (out / JSON).exists():
        return
    path = run.folder / f"checkpoint_{learner.state.iteration:08d}"
    config = EvaluateConfig(
        store=(run.experiment.data,),
        out=out,
        checkpoint=path if isinstance(run.experiment, DGNetExperiment) else None,
        teacher=path if isinstance(run.experiment, TeacherExperiment) else Path(run.teacher) if run.teacher else None,
        device="cpu" if device.type == "cpu" else "cuda",
    )
    with replacing(out) as folder:
        write(evaluate(config, lambda *_: None), folder)
