"""What is said before a run starts."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dgnet_core.learning.config import BatchNormKind
from dgnet_platform.cli.train import announce
from dgnet_platform.runs.experiment import AnyExperiment
from tests.helpers.runs import tiny_experiment


def said(experiment: AnyExperiment) -> str:
    console = Console(file=io.StringIO(), width=200)
    announce(experiment, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("kind", "workers", "words"),
    [
        ("local", "2", "--model.batch-norm local: each of 2 workers normalises over 4 of 8 images.\n"),
        ("local", "1:2", "over 4 of 8 images. Their number changes, and so does the run."),
        ("local_any_size", "4", "--model.batch-norm local_any_size: each of 4 workers normalises over 2 of 8 images."),
        ("local", "1", ""),
        ("synchronised", "4", ""),
    ],
)
def test_it_is_said_over_how_many_images_workers_normalise(
    people_store: Path, tmp_path: Path, kind: BatchNormKind, workers: str, words: str
):
    experiment = tiny_experiment(people_store, tmp_path, workers=workers)
    output = said(replace(experiment, model=replace(experiment.model, batch_norm=kind)))
    assert "On drawn people" in output
    assert words in output
    assert ("normalises" in output) == bool(words)


def test_it_is_said_of_a_teacher_that_is_trained_too(people_store: Path, tmp_path: Path):
    experiment = tiny_experiment(people_store, tmp_path, workers="2")
    baseline = replace(experiment.baseline, batch_norm="local", batch_size=16)
    experiment = replace(experiment, baseline=baseline)
    assert "--baseline.batch-norm local: each of 2 workers normalises over 8 of 16 images." in said(experiment)
    assert "normalises" not in said(replace(experiment, teacher="teacher.pth"))
    recipe = replace(experiment.model.recipe, soft_label="uniform")
    untaught = replace(experiment.model, recipe=recipe, trunk_from_teacher=False)
    assert "normalises" not in said(replace(experiment, model=untaught))
