"""Lengths of runs in iterations and epochs, and what is said of those that are unusual."""

from dataclasses import replace

import pytest
import yaml

from dgnet_core.dgnet.config import DGNetConfig, paper, strong
from dgnet_core.dgnet.schedule import settings
from dgnet_platform.cli.experiments import base_experiment, parse, table_base
from dgnet_platform.cli.options import DGNetDefaults, PaperTables, TrainDGNet
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.lengths import PAPER_EPOCHS, by_linear_rule, fitting_iterations, iterations_of, remarks
from jobs import train_market, tune_market


@pytest.mark.parametrize(
    ("dataset", "images", "iterations", "epochs"),
    [
        ("market1501", 12_936, 100_000, 61.8),
        ("dukemtmc-reid", 16_522, 128_000, 62.0),
        ("msmt17", 32_621, 150_000, 36.8),
        ("cuhk03-np-detected", 7_365, 57_000, 61.9),
        ("cuhk03-np-labeled", 7_368, 57_000, 61.9),
        ("folder", 1_000, 7_730, 61.8),
        ("people", 12_936, 100_000, 61.8),
    ],
)
def test_the_papers_run_is_as_long_as_suits_the_data_set(dataset, images, iterations, epochs):
    found = fitting_iterations(dataset, images)
    assert found == iterations
    assert found * 8 / images == pytest.approx(epochs, abs=0.1)


def test_epochs_are_passes_over_the_training_split():
    assert iterations_of(62, 12_936, 8) == 100_254
    assert iterations_of(0.0001, 8, 8) == 1
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ExperimentError, match="--epochs"):
            iterations_of(wrong, 100, 8)


def test_a_length_far_from_the_papers_is_remarked_upon():
    run = paper(751)
    assert remarks(run, run, 12_936) == []
    assert remarks(run.rescaled(150_000), run.rescaled(150_000), 32_621) == []
    [remark] = remarks(run, run, 32_621)
    assert "24.5 epochs are far from the paper's 62: --epochs 62 makes it 252,172 iterations" in remark
    [remark] = remarks(run, run, 1_000)
    assert "800.0 epochs" in remark


def test_another_batch_size_is_remarked_upon_with_the_rule():
    run = paper(751)
    larger = replace(run.rescaled(25_000), batch_size=32)
    [remark] = remarks(larger, run, 12_936)
    assert "batches of 32 at the learning rates of 8 are another recipe: --linear-batch-size 32" in remark
    assert remarks(by_linear_rule(run, 32, 12_936), run, 12_936) == []


def test_the_linear_rule_keeps_epochs_and_multiplies_rates():
    run = paper(751)
    found = by_linear_rule(run, 32, 12_936)
    assert (found.batch_size, found.iterations) == (32, 25_000)
    assert found.loss.teacher_warmup.start == 7_500
    assert found.optim.milestones == (15_000, 22_500, 26_250)
    for name in ("appearance_lr", "generator_lr", "discriminator_lr"):
        assert getattr(found.optim, name) == 4 * getattr(run.optim, name)
    assert found.optim.warmup_iterations == 2_021  # 5 epochs
    rates = [settings(found, iteration)["lr/appearance"] for iteration in (0, 2_021, 14_998)]
    assert rates == pytest.approx([0.1 * 0.008, 0.008, 0.008])
    assert by_linear_rule(run, 8, 12_936) == run
    smaller = by_linear_rule(run, 4, 12_936)
    assert (smaller.iterations, smaller.optim.appearance_lr, smaller.optim.warmup_iterations) == (200_000, 0.001, 0)
    assert by_linear_rule(run.rescaled(1_000), 32, 12_936).optim.warmup_iterations == 25  # a tenth of the run
    with pytest.raises(ExperimentError, match="--linear-batch-size 0: must be 1 or more"):
        by_linear_rule(run, 0, 12_936)
    averaged = strong(751)  # its own warm-up and cosine are in the run's length
    cosine = by_linear_rule(averaged, 32, 12_936).optim
    assert (cosine.cosine_end, cosine.warmup_iterations) == (25_000, 2_021)


@pytest.mark.parametrize("job", [train_market.main, tune_market.main], ids=["train", "tune"])
def test_commands_take_the_linear_rule_if_asked(job, people_store, tmp_path, capsys):
    given = ["--data", str(people_store), "--storage", str(tmp_path), "--preset", "strong-laptop", "--dry-run"]
    assert job([*given, "--iterations", "400"]) == 0
    before = " ".join(capsys.readouterr().out.split())
    assert job([*given, "--iterations", "400", "--linear-batch-size", "32"]) == 0
    after = " ".join(capsys.readouterr().out.split())
    for figure in ("generator_lr: 0.004", "appearance_lr: 0.008", "iterations: 100 "):
        assert figure in after
        assert figure not in before


def test_a_batch_grows_with_workers_only_if_asked(tmp_path):
    """What a command line asks for is in the settings, which name the run: workers are not."""
    args = ["--preset", "laptop", "--storage", str(tmp_path)]
    models = [
        parse(TrainDGNet, "", [*args, *more])[1].model
        for more in ([], ["--workers", "4"], ["--linear-batch-size", "32", "--workers", "4"])
    ]
    assert models[0] == models[1]
    assert (models[2].batch_size, models[2].iterations) == (32, models[0].iterations // 4)
    tables = PaperTables(preset="strong", linear_batch_size=32, storage=str(tmp_path))
    assert table_base(tables, "", False).model.batch_size == 32
    over = parse(TrainDGNet, "", [*args, "--linear-batch-size", "32", "--model.optim.generator-lr", "0.002"])[1].model
    assert isinstance(over, DGNetConfig)
    assert (over.optim.generator_lr, over.optim.discriminator_lr) == (0.002, 0.004)


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("--iterations", "24", "iterations: 12"),
        ("--epochs", "3", "iterations: 12"),
        ("--linear-batch-size", "16", "batch_size: 4"),
        ("--linear-batch-size", "16", "iterations: 12"),
    ],
)
def test_a_command_line_and_its_file_do_not_contradict_each_other(tmp_path, option, value, setting):
    file = tmp_path / "file.yaml"
    file.write_text(f"model: {{{setting}}}\n")
    args = ["--storage", str(tmp_path), "--config", str(file)]
    with pytest.raises(ExperimentError, match=f"{option} {value}, but --config .*file.yaml has model.{setting}"):
        parse(TrainDGNet, "", [*args, option, value])
    assert f"{setting.partition(': ')[0]}={setting.partition(': ')[2]}" in repr(parse(TrainDGNet, "", args)[1].model)


@pytest.mark.parametrize("preset", ["laptop", "strong-laptop"])
def test_the_small_presets_take_minutes(people_store, tmp_path, preset):
    for data in ([], ["--data", str(people_store)]):
        _, experiment = parse(TrainDGNet, "", ["--preset", preset, "--storage", str(tmp_path), *data])
        assert experiment.model.iterations == 800


def test_a_search_follows_the_data_set(people_store):
    options = DGNetDefaults(data=str(people_store), preset="paper")
    pictures = 144
    assert base_experiment(options).model.iterations == fitting_iterations("people", pictures)
    assert base_experiment(options).model.precise_batches == 40  # as trials are compared
    model = base_experiment(replace(options, epochs=10)).model
    assert model.iterations == 180
    assert model.loss.teacher_warmup.start == 54
    assert base_experiment(replace(options, iterations=100_000)).model.iterations == 100_000
    with pytest.raises(ExperimentError, match="--iterations 5 and --epochs 10: give one of them"):
        base_experiment(replace(options, iterations=5, epochs=10))


@pytest.mark.parametrize("job", [train_market.main, tune_market.main], ids=["train", "tune"])
def test_a_plan_says_how_many_epochs_and_warns(job, people_store, tmp_path, capsys):
    assert pytest.approx(61.84, abs=0.01) == PAPER_EPOCHS
    given = ["--data", str(people_store), "--storage", str(tmp_path), "--preset", "paper", "--dry-run"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"network": {"pretrained": "none"}}}))
    given += ["--config", str(tmp_path / "config.yaml")]
    assert job(given) == 0
    assert "epochs of about" in (quiet := capsys.readouterr().out)
    assert "far from the paper's" not in quiet
    assert job([*given, "--iterations", "100000"]) == 0
    assert "epochs are far from the paper's 62" in " ".join(capsys.readouterr().out.split())
