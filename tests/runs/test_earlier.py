"""What an earlier version left (commit c799c61): read, evaluated and built upon, but not resumed.

`tests/data/earlier` holds a run of `tiny_experiment` with narrower networks, its last checkpoint, what its networks
made of `IMAGES` (`expected.json`), and the study of a search of four trials.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.methods import build, method_of
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.results import read
from dgnet_platform.runs import checkpoint, journal
from dgnet_platform.runs.experiment import identity_of
from dgnet_platform.runs.loading import open_trained
from dgnet_platform.runs.run import RESULTS, Run
from dgnet_platform.search.space import Space
from dgnet_platform.search.study import FILE, Study, StudyError
from dgnet_platform.storage.serialize import from_dict, to_dict
from dgnet_platform.training.plan import NamedRun, make_plan
from jobs import evaluate
from tests.helpers.generators import method_batch

pytestmark = pytest.mark.usefixtures("one_thread")
EARLIER = Path(__file__).parents[1] / "data" / "earlier"
CHECKPOINT = EARLIER / "run" / "checkpoint_00000012"
IMAGES = torch.linspace(-2, 2, 2 * 3 * 24 * 12).reshape(2, 3, 24, 12).sin()


def test_its_networks_describe_and_draw_as_they_did() -> None:
    expected = {
        name: torch.tensor(rows) for name, rows in json.loads((EARLIER / "run/expected.json").read_text()).items()
    }
    trained = open_trained(CHECKPOINT)
    assert trained.method.describe is not None
    with torch.no_grad():
        prim, fine = trained.method.describe(trained.state).eval().describe(IMAGES)
        drawn = trained.draw(IMAGES, IMAGES.flip(0)).mean(dim=(2, 3))
    for name, found in {"f_prim": prim, "f_fine": fine, "drawn_mean": drawn}.items():
        torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-4)


def test_its_checkpoint_is_evaluated(people_store: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", CHECKPOINT, "--store", people_store, "--out", tmp_path / "out", "--swap-pairs", "4"]
    assert evaluate.main(list(map(str, [*arguments, "--threads", "1"]))) == 0
    found, before = read(tmp_path / "out"), read(EARLIER / "run" / RESULTS)
    single = before.retrieval[before.retrieval["query"] == "single"]
    assert set(single["feature"]) >= {"f_prim", "f_fine", "both"}
    assert set(found.retrieval["feature"]) == set(before.retrieval["feature"]) - {"baseline"}
    assert len(found.swaps)


def test_its_run_is_read() -> None:
    run = Run.read(EARLIER / "run")
    assert run.experiment.model == open_trained(CHECKPOINT).config
    assert run.last_checkpoint == CHECKPOINT
    assert [entry.iteration for entry in journal.read(run.folder)] == list(range(1, 13))


def test_it_is_not_resumed_for_its_record_lacks_later_settings(people_store: Path, tmp_path: Path) -> None:
    run, store = Run.read(EARLIER / "run"), Store.open(people_store)
    known = {name: run.identity[name] for name in ("dataset", "fingerprint", "teacher", "origin")}
    identity = identity_of(run.experiment, **known)
    named = NamedRun(
        experiment=run.experiment, store=store, identity=identity, folder=run.folder, teacher=None, origin=None
    )
    with pytest.raises(ExperimentError, match=r"has other settings:(.|\n)*model.beta: None -> 0.5(.|\n)*--resume-from"):
        make_plan(named)

    model = replace(run.experiment.model, iterations=14)
    assert isinstance(model, DGNetConfig)
    begun = replace(named, experiment=replace(run.experiment, model=model), folder=tmp_path / "new", origin=CHECKPOINT)
    assert make_plan(begun).origin == CHECKPOINT
    state = build(model, teacher=Teacher(model.network, model.num_classes), pretrained=False)
    checkpoint.load(CHECKPOINT, state)
    metrics = method_of(model).step(state, method_batch(model, 12), model)
    assert state.iteration == 13
    assert all(value.isfinite() for value in metrics.values())


def test_its_search_is_not_resumed_but_another_starts_from_its_best(tmp_path: Path) -> None:
    file = tmp_path / FILE
    shutil.copy(EARLIER / "search" / FILE, file)
    storage = JournalStorage(JournalFileBackend(str(file)))
    identity = optuna.load_study(study_name="earlier-search", storage=storage).user_attrs["search"]
    base = from_dict(DGNetConfig, identity["model"])
    changes = {name: identity["space"][name] for name in ("warmup_start", "ramp", "generated_identity")}
    space = Space.default(base).overridden(changes)
    with pytest.raises(StudyError, match=r"is another one:(.|\n)*model.beta: None -> 0.5"):
        Study(tmp_path, "earlier-search", identity | {"model": to_dict(base)}, space, base, seed=0)

    study = Study(tmp_path, "earlier-search", identity, space, base, seed=0)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 2
    best = max(study.trials[:2], key=lambda trial: trial.values[0]).params
    (tmp_path / "new").mkdir()
    new = Study(tmp_path / "new", "new", {}, space, base, seed=0, warm_start=[f"{file}:earlier-search"])
    new.ask()  # the base's own setting
    assert new.values(new.ask()) == best
