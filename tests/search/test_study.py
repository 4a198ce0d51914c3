"""A search's study: what is tried next, the same after any kill, and what is refused."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from dgnet_platform.search.study import FILE, STARTUP, Study, StudyError
from tests.helpers.studies import BASE, IDENTITY, SPACE, opened


def end(study: Study, number: int) -> None:
    """A trial ends as its values have it."""
    values = study.values(number)
    if number == 3:
        study.tell(number, "pruned", curve={9: 0.1, 26: 0.2})
    elif number == 4:
        study.tell(number, "fail")
    else:
        study.tell(number, "complete", values=[float(values["prim"]) - float(values["alpha"])], curve={9: 0.3})


def searched(folder: Path, kill: tuple[int, ...] = ()) -> list[dict]:
    """Values of all trials of a search whose driver is killed in some of them."""
    study, found = opened(folder), []
    while study.missing or study.running:
        number = study.running[0] if study.running else study.ask()
        if number in kill:
            kill = tuple(k for k in kill if k != number)
            study = opened(folder)
            assert study.running == [number]
            study.resample(number)
        found.append(study.values(number))
        end(study, number)
    return found


def test_a_study_is_the_same_after_kills(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    trials = searched(whole)
    assert trials == searched(killed, kill=(0, 2, 6))
    assert len(trials) == 9  # one failed and was replaced
    assert trials[0] == SPACE.defaults(BASE)
    assert len({json.dumps(values) for values in trials}) == 9


def test_a_trial_that_was_half_asked_for_gets_the_same_values(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = searched(whole)[1]
    study = opened(killed)
    end(study, study.ask())

    class KillError(Exception):
        pass

    suggest = optuna.Trial.suggest_float

    def die(trial, name, *bounds, **scale):
        if name == "alpha":
            raise KillError
        return suggest(trial, name, *bounds, **scale)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "suggest_float", die)
        with pytest.raises(KillError):
            study.ask()
    study = opened(killed)
    assert set(study.values(1)) < set(expected)
    study.resample(1)
    assert study.values(1) == expected


def test_half_a_line_at_the_end_of_a_study_is_cut_off(tmp_path):
    study = opened(tmp_path)
    end(study, study.ask())
    with (tmp_path / FILE).open("a") as file:
        file.write('{"op_code": 5, "wor')
    study = opened(tmp_path)
    assert study.ask() == 1
    assert len(opened(tmp_path).trials) == 2


def test_trials_are_added_once(tmp_path):
    study = opened(tmp_path)
    study.set_target(2)
    for _ in range(2):
        end(study, study.ask())
    assert study.missing == 0
    study.set_target(0, 3)
    assert (study.target, study.missing) == (5, 3)
    study.set_target(0, 3)  # the same command after a kill
    assert study.target == 5
    numbers = [study.ask() for _ in range(3)]
    study.set_target(0, 3)  # and after one while all were under way
    assert (study.target, study.missing) == (5, 0)
    for number in numbers:
        end(study, number)


def test_failures_are_replaced_within_bounds(tmp_path):
    study = opened(tmp_path)
    study.set_target(4)
    study.tell(study.ask(), "complete", values=[0.5])
    asked = 1
    while study.missing:
        study.tell(study.ask(), "fail")
        asked += 1
    assert asked == 6


def test_another_search_of_the_same_name_is_refused(tmp_path):
    opened(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    other = SPACE.overridden({"alpha": 0.3})
    with pytest.raises(StudyError, match=r"(?s)search search exists.*space\.alpha.*--name"):
        opened(tmp_path, identity={**IDENTITY, "space": dict(other.dimensions)}, space=other)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("how", ["complete", "pruned"])
def test_a_base_outside_the_space_is_tried_and_leaves_tpe_the_joint_space(tmp_path, how):
    space = SPACE.overridden({"prim": {"low": 2.5, "high": 5}})
    study = opened(tmp_path, space=space)
    assert study.values(study.ask()) == {}
    study.tell(0, how, values=[0.9] if how == "complete" else None, curve={9: 0.3})
    for _ in range(STARTUP + 1):
        number = study.ask()
        assert study.values(number).keys() == space.distributions.keys()
        study.tell(number, "complete", values=[float(study.values(number)["prim"])])
    study.ask()
    sampler, running = study.study.sampler, study.study.get_trials()[-1]
    assert sampler.infer_relative_search_space(study.study, running) == dict(space.distributions)
    again = opened(tmp_path, space=space)
    for one in (study, again):
        base = one.trials[0]
        assert (base.state, base.values) == (TrialState[how.upper()], [0.9] if how == "complete" else None)
        assert base.intermediate_values == {9: 0.3}
        assert one.missing == 0  # 8 are wanted


def test_a_base_outside_the_space_that_fails_has_failed(tmp_path):
    study = opened(tmp_path, space=SPACE.overridden({"prim": {"low": 2.5, "high": 5}}))
    study.tell(study.ask(), "fail")
    assert study.trials[0].state == TrialState.FAIL
    assert study.missing == 8


def test_the_best_of_an_earlier_study_come_first(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = opened(tmp_path / "old")
    searched(tmp_path / "old")
    done = [t for t in old.trials if t.state == TrialState.COMPLETE]
    best = sorted(done, key=lambda t: -(t.value or 0))[:3]
    space = SPACE.overridden({"ramp": 16})  # not searched any more
    study = opened(tmp_path / "new", space=space, warm_start=(f"{tmp_path}/old/{FILE}:search",))
    tried = [study.values(study.ask()) for _ in range(4)]
    for trial, values in zip([t for t in best if t.number], tried[1:], strict=False):
        assert {**values, "ramp": trial.params["ramp"]} == trial.params
    with pytest.raises(StudyError, match="has no study 'other', only search"):
        opened(tmp_path, warm_start=(f"{tmp_path}/old/{FILE}:other",))
    with pytest.raises(StudyError, match="name a study's file"):
        opened(tmp_path, warm_start=("/nowhere:x",))


def test_the_base_is_tried_once_more_although_an_earlier_study_still_waits(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    searched(tmp_path / "old")
    options = {"warm_start": (f"{tmp_path}/old/{FILE}:search",)}
    study = opened(tmp_path / "new", **options)
    for _ in range(2):
        study.tell(study.ask(), "fail")
    study = opened(tmp_path / "new", **options)
    tried = [study.values(study.ask()) for _ in range(4)]
    assert study.values(0) in tried


def test_a_study_of_two_objectives(tmp_path):
    study = opened(tmp_path, objectives=2)
    for _ in range(8):
        values = study.values(number := study.ask())
        study.tell(number, "complete", values=[float(values["prim"]), -float(values["prim"])])
    assert not study.missing
    assert [trial.values[0] for trial in study.trials] == [-trial.values[1] for trial in study.trials]
    again = opened(tmp_path, objectives=2, name="new", warm_start=(f"{tmp_path}/{FILE}:search",))
    assert again.values(again.ask()) == SPACE.defaults(BASE)
