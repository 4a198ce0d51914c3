"""The smallest run that is still one: drawn people, tiny networks, a dozen iterations."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from mlflow import MlflowClient
from rich.console import Console

from dgnet_core.dgnet.config import LossConfig, laptop
from dgnet_core.learning.config import AugmentConfig, Warmup
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.config import TeacherConfig
from dgnet_platform.data.held_out import held_out_people
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment, TeacherExperiment, identity_of
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.run import Run
from dgnet_platform.storage.serialize import to_dict

PEOPLE = 12
"""Training identities of the tiny set of drawn people."""
CLASSES = PEOPLE - held_out_people(PEOPLE)
ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)

NETWORK = NetworkConfig(
    height=24, width=12, appearance_layers=(1, 1, 1, 1), appearance_width=4, bottleneck=16, pretrained="none",
    structure_width=2, aspp_dilations=(1, 1, 1), residual_blocks=1, adain_width=8, discriminator_width=4,
    discriminator_scales=2,
)  # fmt: skip


def tiny_experiment(store: Path, storage: Path, **overrides) -> DGNetExperiment:
    """DG-Net for 12 iterations: warm-up until 4, evaluated at 6 and 12, saved every 3."""
    warmup = Warmup(start=4, slope=0.5)
    model = replace(
        laptop(CLASSES, iterations=12),
        network=NETWORK,
        batch_size=8,
        loss=LossConfig(code_warmup=warmup, teacher_warmup=warmup),
        augment=AugmentConfig(pad=1),
    )
    fields = {
        "data": str(store),
        "storage": str(storage),
        "model": model,
        "baseline": TeacherConfig(
            num_classes=CLASSES, iterations=6, batch_size=8, network=NETWORK, augment=AugmentConfig(pad=1),
            warmup_iterations=0, milestones=(4,),
        ),
        "threads": 1,
        "log_every": 1,
        "evaluate_every": 6,
        "checkpoint_every": 3,
        "keep": 2,
    }  # fmt: skip
    return DGNetExperiment(**(fields | overrides))


def tiny_teacher(store: Path, storage: Path, **overrides) -> TeacherExperiment:
    """The teacher of `tiny_experiment`."""
    return replace(teacher_of(tiny_experiment(store, storage)), **overrides)


def untracked(experiment: AnyExperiment, folder: Path, **fields: Any) -> Run:
    """A run that MLflow knows nothing of, and its folder."""
    folder.mkdir(exist_ok=True)
    identity = identity_of(experiment, dataset="people", fingerprint="f", teacher=None, origin=None)
    fields = {"tracking_uri": "", "mlflow_experiment": "", "mlflow_run": ""} | fields
    return Run(folder=folder, experiment=experiment, identity=identity.values(), **fields)


def job(name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A job as a user starts it, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", **environment},
    )


def tensors(run: Run, iteration: int) -> dict:
    """The tensors of a run's checkpoint."""
    return torch.load(run.folder / f"checkpoint_{iteration:08d}" / "tensors.pt", weights_only=True)


def same(left, right) -> bool:
    """Whether two trees of tensors and numbers are equal in every bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) or bool((left.isnan() == right.isnan()).all() and left.isnan().any())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def lines(folder: Path) -> list[dict]:
    """A run's journal."""
    whole, _, _ = (folder / "metrics.jsonl").read_text().rpartition("\n")  # the last line may still be written
    return [json.loads(line) for line in whole.splitlines()]


def history(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    """A metric of a run as MLflow has it: iterations and values."""
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.mlflow_run, name)]


def by_command_line(experiment, path: Path) -> list[str]:
    """An experiment as options of jobs/train_market.py."""
    path.write_text(yaml.safe_dump(to_dict(experiment)), encoding="utf-8")
    return ["--config", str(path)]
