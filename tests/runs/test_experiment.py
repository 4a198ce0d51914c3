"""Experiments: stored and rebuilt, named after what decides their result, with clear errors."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from dgnet_core.methods import method_of
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs import provenance as version
from dgnet_platform.runs.experiment import identity_of, read_experiment
from dgnet_platform.runs.presets import (
    GeneratorName,
    Preset,
    dgnet_experiment,
    generator_experiment,
    nearest_preset,
    teacher_experiment,
    teacher_of,
)
from dgnet_platform.runs.run import RECORD, STARTS, Run
from dgnet_platform.storage.serialize import differences, flat, to_dict
from tests.helpers.runs import tiny_experiment, tiny_teacher, untracked

HERE = Path("store")


def identity(experiment, **overrides):
    known = {"dataset": "people", "fingerprint": "f", "teacher": "t", "origin": None}
    return identity_of(experiment, **(known | overrides))


@pytest.mark.parametrize("preset", get_args(Preset))
def test_presets_survive_the_way_through_plain_values(preset):
    for experiment in (dgnet_experiment(preset, 651, 11_000), teacher_experiment(preset, 651, 11_000)):
        kind = method_of(experiment.model).name
        assert read_experiment(kind, to_dict(experiment)) == experiment


@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("method", get_args(GeneratorName))
def test_the_nearest_preset_of_a_generators_run(method, preset):
    experiment = generator_experiment(method, preset, 651, 11_000, 600)
    assert nearest_preset(experiment, 11_000) == (preset, {})
    changed = replace(experiment, model=replace(experiment.model, seed=3))
    assert nearest_preset(changed, 11_000) == (preset, {"model.seed": (0, 3)})


def test_paper_is_the_papers_run():
    paper = dgnet_experiment("paper", 751, 12_936)
    assert (paper.model.iterations, paper.model.batch_size, paper.model.network.height) == (100_000, 8, 256)
    assert paper.model.loss.teacher_warmup.start == 30_000
    assert not paper.hold_out
    assert paper.baseline.iterations == round(60 * 12_936 / 32)


def test_release_is_the_releases_run():
    release = dgnet_experiment("release", 751, 12_936)
    assert release.baseline.network == release.model.network  # the teacher's bottleneck starts likewise
    changed = differences(to_dict(dgnet_experiment("paper", 751, 12_936)), to_dict(release))
    assert set(changed) == {
        "model.network.release_bottleneck", "model.recipe.teacher_dropout", "model.recipe.release_statistics",
        "baseline.network.release_bottleneck",
    }  # fmt: skip
    assert nearest_preset(release, 12_936) == ("release", {})


@pytest.mark.parametrize(("preset", "of"), [("strong", "paper"), ("strong-laptop", "laptop")])
def test_strong_presets_are_settings_of_the_same_size_and_length(preset, of):
    strong, plain = dgnet_experiment(preset, 651, 11_000), dgnet_experiment(of, 651, 11_000)
    changed = differences(to_dict(plain.model), to_dict(strong.model))
    assert changed.keys() == {
        "network.pooling", "network.neck", "network.prim_dropout", "metric.triplet", "ema", "loss.label_smoothing",
        "optim.warmup_iterations", "optim.cosine_end",
    }  # fmt: skip
    assert strong.model.optim.cosine_end == strong.model.iterations
    teacher = strong.baseline
    assert (teacher.instances, teacher.network.neck, teacher.network.pooling) == (4, "bnneck", "gem")
    assert teacher.cosine_end == teacher.iterations
    assert strong.model.rescaled(100).optim.cosine_end == teacher.rescaled(100).cosine_end == 100
    assert replace(strong, model=plain.model, baseline=plain.baseline) == plain  # nothing around them differs


def test_iterations_scale_the_schedule():
    half = dgnet_experiment("paper", 751, 12_936, iterations=50_000)
    assert half.model.loss.teacher_warmup.start == 15_000
    assert half.model.optim.milestones[0] == 30_000


def test_a_name_follows_from_what_decides_the_result():
    experiment = tiny_experiment(HERE, Path("runs"))
    name = identity(experiment).name
    assert name.startswith("people-dgnet-")
    for elsewhere in ({"storage": "other"}, {"workers": "4"}, {"tracking_uri": "http://x"}, {"checkpoint_every": 1}):
        assert identity(replace(experiment, **elsewhere)).name == name
    changed = [
        identity(replace(experiment, model=replace(experiment.model, seed=1))),
        identity(replace(experiment, hold_out=False)),
        identity(experiment, fingerprint="g"),
        identity(experiment, teacher="u"),
        identity(experiment, origin="checkpoint"),
        identity(tiny_teacher(HERE, Path("runs"))),
    ]
    assert len({name, *(other.name for other in changed)}) == 1 + len(changed)


def test_a_teacher_shares_data_and_machines():
    experiment = tiny_experiment(HERE, Path("runs"), workers="2", max_failures=1)
    teacher = teacher_of(experiment)
    assert teacher.model == experiment.baseline
    assert teacher.model == experiment.baseline
    assert (teacher.data, teacher.workers, teacher.max_failures) == (experiment.data, "2", 1)


@pytest.mark.parametrize(("workers", "fewest", "most"), [("0", 0, 0), ("4", 4, 4), ("1:4", 1, 4)])
def test_workers(workers, fewest, most):
    experiment = tiny_experiment(HERE, Path("runs"), workers=workers)
    assert (experiment.fewest_workers, experiment.most_workers) == (fewest, most)
    assert experiment.elastic == (fewest != most)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("workers", "four", "workers 'four'"),
        ("workers", "4:1", "4:1"),
        ("workers", "0:2", "0:2"),
        ("name", "../x", "letters"),
        ("keep", 0, "keep 0"),
        ("log_every", 0, "log_every"),
        ("evaluate_every", 0, "evaluate_every"),
        ("gpus", True, "gpus"),
    ],
)
def test_bad_settings_are_named(field, value, word):
    with pytest.raises(ValueError, match=word):
        tiny_experiment(HERE, Path("runs"), **{field: value})


def test_differences_and_flat_speak_in_paths():
    before = {"model": {"seed": 0, "loss": {"prim": 2.0}}, "hold_out": True}
    after = {"model": {"seed": 0, "loss": {"prim": 1.0}}, "hold_out": True, "origin": "c"}
    assert differences(before, after) == {"model.loss.prim": (2.0, 1.0), "origin": (None, "c")}
    assert differences(before, before) == {}
    assert flat(before) == {"model.seed": 0, "model.loss.prim": 2.0, "hold_out": True}


def test_a_run_is_rebuilt_from_its_record(tmp_path):
    experiment = tiny_experiment(HERE, tmp_path)
    run = Run(
        folder=tmp_path,
        experiment=experiment,
        identity=identity(experiment).values(),
        teacher="t",
        tracking_uri="sqlite:////x",
        mlflow_experiment="1",
        mlflow_run="2",
    )
    run.save()
    assert Run.read(tmp_path) == run
    assert Run.read(tmp_path).experiment.model == experiment.model
    run.ask_to_stop()
    assert run.stop_asked
    run.forget_stop()
    assert not run.stop_asked


def test_half_a_line_of_the_starts_counts_for_nothing(tmp_path):
    run = untracked(tiny_experiment(HERE, tmp_path), tmp_path)
    assert run.starts == []
    run.note_start(0, ["a"])
    with (tmp_path / STARTS).open("a") as file:
        file.write('{"time": 1, "iter')
    run.note_start(7, ["b"])
    assert [(start["iteration"], start["hosts"]) for start in run.starts] == [(0, ["a"]), (7, ["b"])]


def test_the_code_that_trains_has_a_digest_of_its_own(tmp_path):
    folders = tuple(Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in version._FOLDERS)
    core, platform = folders

    def digest(reworded: Path | None = None) -> str:
        if reworded is not None:
            reworded.write_text(reworded.read_text() + "# reworded\n")
        version.training_digest.cache_clear()
        return version.training_digest(folders)

    before = digest()
    assert before == version.training_digest()
    assert re.fullmatch("[0-9a-f]{64}", before)
    for leaves in ("data/readers/market.py", "data/prepare.py", "search/space.py", "cli/train.py"):
        assert digest(platform / leaves) == before, leaves
    digests = [before, digest(platform / "data" / "decode.py"), digest(platform / "training" / "loop.py")]
    digests += [digest(core / "dgnet" / "step.py"), digest(core / "networks" / "blocks.py")]
    (core / "networks" / "blocks.py").write_bytes((version._FOLDERS[0] / "networks" / "blocks.py").read_bytes())
    assert digest() == digests[-2]
    assert len(set(digests)) == 5


def test_a_damaged_record_is_named(tmp_path):
    assert Run.find(tmp_path) is None
    (tmp_path / RECORD).write_text('{"format": 1, "kind": "dgnet"')
    with pytest.raises(ExperimentError, match=RECORD):
        Run.find(tmp_path)
    (tmp_path / RECORD).write_text('{"format": 99}')
    with pytest.raises(ExperimentError, match="another version"):
        Run.read(tmp_path)
