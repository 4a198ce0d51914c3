"""What Ray Train starts on each rank: build, restore, run the loop, evaluate."""

import logging
import socket
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.util
import torch
from ray.train.torch import get_device

from dgnet_core.learning.memory import keep_freed_memory
from dgnet_core.methods import method_of, needs_joints
from dgnet_platform.data.cache import cached
from dgnet_platform.data.images import ImageSet, validation_split
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.evaluate import evaluate
from dgnet_platform.evaluation.results import JSON, replacing, write
from dgnet_platform.evaluation.swaps import people_of
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.loading import load_teacher
from dgnet_platform.runs.run import RESULTS, Run, checkpoint_at
from dgnet_platform.tracking.shipping import Shipper
from dgnet_platform.training.collectives import broadcast, gather, ranks
from dgnet_platform.training.learner import Learner
from dgnet_platform.training.loop import run_loop
from dgnet_platform.training.validation import Validator

_log = logging.getLogger(__name__)


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Train the run in `config["folder"]` until it is finished, asked to stop, no longer finite, or judged too bad.

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
    learner, validator = build_rank(run, device)
    _restore(run, learner)
    hosts = gather(_host())
    if rank == 0:
        run.note_start(learner.state.iteration, hosts)
    shipper = Shipper.start(folder) if rank == 0 else None
    try:
        outcome = run_loop(run, learner, validator, report=ray.train.report, judge=config.get("judge"))
        if outcome.ending == "finished" and rank == 0 and run.evaluated_at_end:
            _evaluate(run, learner, device)
    finally:
        if shipper is not None:
            shipper.finish()
    return asdict(outcome)


def build_rank(run: Run, device: torch.device) -> tuple[Learner, Validator]:
    """What a run trains, before its first iteration, and how it is validated.

    Raises:
        ValueError, StoreError, PoseError, CheckpointError, ImageMemoryError: the data or the teacher cannot be used.
    """
    experiment = run.experiment
    network = experiment.model.network
    store = cached(Store.open(experiment.data))
    posed = needs_joints(experiment.model)
    load = partial(ImageSet.load, store, height=network.height, width=network.width, posed=posed)
    rank, _ = ranks()
    images = load("train")
    if experiment.hold_out:
        more = rank == 0 and "validation" in store.info.splits  # no other rank validates
        split = validation_split(images, load("validation") if more else None)
        images, query, gallery, group = split.train, split.query, split.gallery, "val"
    elif {"query", "gallery"} <= store.info.splits.keys():
        query, gallery, group = (*map(load, ("query", "gallery")), "test") if rank == 0 else (images, images, "test")
    else:
        query, gallery, group = images, images, "train"
    if not method_of(experiment.model).posed:  # joints say which images it sees, they are nothing to draw by
        query, gallery = replace(query, joints=None), replace(gallery, joints=None)
    teacher = load_teacher(Path(run.teacher), device) if run.teacher is not None else None
    learner = Learner(experiment.model, images, device, teacher)
    validator = Validator(
        config=experiment.model,
        group=group,
        query=query,
        gallery=gallery,
        people=people_of(store),
        batches=learner.images_for_statistics,
    )
    return learner, validator


def _restore(run: Run, learner: Learner) -> None:
    """Resume from the run's newest whole checkpoint, or from the one it was forked from."""
    found = broadcast(str(checkpoint.newest(run.folder) or "") if ranks()[0] == 0 else None) or run.origin
    if found:
        checkpoint.load(Path(found), learner.state)
        _log.warning("resumes from %s", found)


def _host() -> str:
    """This machine's name, and its address where it is one of a cluster's."""
    name = socket.gethostname()
    return f"{name} ({ray.util.get_node_ip_address()})" if ray.is_initialized() else name


def _evaluate(run: Run, learner: Learner, device: torch.device) -> None:
    """Evaluate the finished run on query and gallery of its store, into its results folder; nothing if that is done."""
    out = run.folder / RESULTS
    if (out / JSON).exists():
        return
    path = checkpoint_at(run.folder, learner.state.iteration)
    generates = method_of(run.experiment.model).generates  # else it is a teacher
    config = EvaluateConfig(
        store=(run.experiment.data,),
        out=out,
        checkpoint=path if generates else None,
        teacher=Path(run.teacher) if run.teacher else None if generates else path,
        device="cpu" if device.type == "cpu" else "cuda",
    )
    with replacing(out) as folder:
        write(evaluate(config, lambda *_: None), folder)
