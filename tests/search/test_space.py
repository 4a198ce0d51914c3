"""What a search varies, and how it becomes configurations."""

import io
import json
import math
import warnings
from dataclasses import replace

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, laptop, paper
from dgnet_core.dgnet.schedule import ramp_end, weights
from dgnet_core.learning.config import Warmup
from dgnet_platform.cli.experiments import _dimension
from dgnet_platform.errors import ExperimentError
from dgnet_platform.search.sharing import prefix_of
from dgnet_platform.search.space import PARAMETERS, Space, SpaceError
from dgnet_platform.search.stopping import StoppingRule

BASE = paper(751)
DEFAULT = Space.default(BASE)
RECIPE = BASE.recipe
WEIGHTS = st.just(0.0) | st.floats(0.001, 5)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("prim", {"low": 3, "high": 1}, "prim = {'low': 3.0, 'high': 1.0}: `low <= high` must hold"),
        ("prim", {"low": 1, "high": 1}, "prim: low = high = 1 leaves nothing to search"),
        ("prim", {"low": 1}, "prim: high is missing"),
        ("prim", {"low": 1, "high": None}, "prim: high is missing"),
        ("prim", {}, "prim: low is missing"),
        ("prim", {"low": 0, "high": 1, "log": True}, "prim = {'low': 0.0, 'high': 1.0, 'log': True}: `low > 0` must"),
        ("ramp", {"low": 1, "high": 2, "log": True, "step": 0}, "ramp = 0: Input should be greater than or equal to 1"),
        ("prim", {"low": 1, "high": 2, "log": "yes"}, "prim: log = 'yes': true or false is needed"),
        ("prim", {"low": 1, "high": 2, "log": True, "step": 1}, "'step': 1.0}: The parameter `step` is not supported"),
        ("prim", {"low": 0, "high": 1, "step": 0.3}, "prim: step = 0.3 does not lead from low = 0 to high = 1: use"),
        ("prim", {"low": 0, "high": 1, "step": 2}, "prim: step = 2 does not lead from low = 0 to high = 1: use"),
        ("prim", {"low": 0, "high": 1, "step": 0}, "'step': 0.0}: `step > 0` must hold, but got step=0.0"),
        ("prim", {"low": 0, "high": 1, "step": -1}, "prim = -1: Input should be greater than or equal to 0"),
        ("prim", {"low": 0, "hihg": 1}, "prim: unknown key 'hihg': did you mean 'high'?"),
        ("prim", {"choices": [1], "low": 0}, "prim: unknown key 'low'"),
        ("prim", {"choices": []}, "prim = {'choices': []}: The `choices` must contain one or more elements"),
        ("prim", {"choices": 3}, "prim: choices = 3: a list is needed"),
        ("prim", {"choices": "abc"}, "prim: choices = 'abc': a list is needed"),
        ("prim", {"choices": [1, 1.0]}, "prim: choices 1, 1: each may be there only once"),
        ("prim", {"low": -1, "high": 1}, "prim = -1: Input should be greater than or equal to 0"),
        ("prim", -1, "prim = -1: Input should be greater than or equal to 0"),
        ("prim", math.nan, "prim = nan: Input should be"),
        ("prim", {"low": 0, "high": math.inf}, "prim = inf: Input should be a finite number"),
        ("prim", "much", "prim = 'much': Input should be a valid number"),
        ("prim", True, "prim = True: true and false are no values of it"),
        ("prim", None, "prim = None: Input should be a valid number"),
        ("prim", [1, 2], "prim = [1, 2]: Input should be a valid number"),
        ("appearance_lr", 0, "appearance_lr = 0: Input should be greater than 0"),
        ("ramp", 0, "ramp = 0: Input should be greater than or equal to 1"),
        ("ramp", 2.5, "ramp = 2.5: Input should be a valid integer"),
        ("warmup_start", {"low": 1, "high": 2.5}, "warmup_start = 2.5: Input should be a valid integer"),
        ("warmup_start", {"low": 0, "high": 10, "step": 2.5}, "warmup_start = 2.5: Input should be a valid integer"),
        ("soft_label", "dynamc", "soft_label = 'dynamc': Input should be 'dynamic', 'pseudo'"),
        ("soft_label", {"choices": ["dynamic", 3]}, "soft_label = 3: Input should be 'dynamic', 'pseudo'"),
        ("soft_label", {"low": "none", "high": "dynamic"}, "soft_label: a range of texts: list the choices"),
        ("alhpa", 1, "unknown parameter 'alhpa': did you mean 'alpha'?"),
        ("warm_up_start", 1, "unknown parameter 'warm_up_start': did you mean 'warmup_start'?"),
        ("xyz", 1, "unknown parameter 'xyz': there are image, "),
    ],
)  # fmt: skip
def test_a_wrong_dimension_is_named(parameter, value, message):
    with pytest.raises(SpaceError) as error:
        DEFAULT.overridden({parameter: value})
    assert message in str(error.value)


def test_values_come_as_files_and_command_lines_have_them():
    space = Space({}).overridden(
        yaml.safe_load("""
            appearance_lr: 1e-3
            generator_lr: {low: 1e-5, high: "1e-3", log: true}
            ramp: {low: 1000.0, high: 8000, step: 500}
            prim: {choices: [1, 2, 4]}
            alpha: "0.3"
            soft_label: {choices: [dynamic, none]}
            warmup_start: {low: 5, high: 6, step: null}
        """)
    )
    assert dict(space.dimensions) == {
        "prim": {"choices": [1.0, 2.0, 4.0]}, "alpha": 0.3, "warmup_start": {"low": 5, "high": 6},
        "ramp": {"low": 1000, "high": 8000, "step": 500}, "soft_label": {"choices": ["dynamic", "none"]},
        "appearance_lr": 1e-3, "generator_lr": {"low": 1e-5, "high": 1e-3, "log": True},
    }  # fmt: skip
    for name, kind in (("ramp", int), ("generator_lr", float)):
        assert type(space.dimensions[name]["low"]) is type(space.dimensions[name]["high"]) is kind
    assert space.searched == ("prim", "warmup_start", "ramp", "soft_label", "generator_lr")
    assert space.overridden({"ramp": 7}).dimensions["ramp"] == 7


def test_a_space_is_stored_and_read_back():
    for space in (DEFAULT, DEFAULT.overridden({"soft_label": {"choices": ["dynamic", "pseudo"]}, "alpha": 0.1})):
        stored = json.loads(json.dumps(dict(space.dimensions)))
        again = Space({}).overridden(stored)
        assert again == space
        assert Space({}).overridden(yaml.safe_load(yaml.safe_dump(stored))) == space


@pytest.mark.parametrize(
    "base",
    [paper(751), *(laptop(600, iterations=n) for n in (800, 750, 200, 60)), paper(5, loss=LossConfig(prim=0.0))],
)
def test_the_default_space_holds_the_bases_setting_and_every_trial_of_it_fits(base):
    space = Space.default(base)
    assert set(space.dimensions) == set(PARAMETERS)
    assert space.searched == ("prim", "alpha", "warmup_start", "ramp")
    defaults = space.defaults(base)
    assert defaults is not None
    assert space.apply(base, defaults) == space.apply(base, {}) == base
    starts = space.dimensions["warmup_start"]
    assert 0.1 * base.iterations <= starts["low"] < base.loss.teacher_warmup.start
    assert base.loss.teacher_warmup.start < starts["high"] <= 0.5 * base.iterations
    far = space.distances(base, StoppingRule())
    for values in space.draw(100, seed=0):
        assert ramp_end(space.apply(base, values)) + far[-1] < base.iterations


def test_the_paper_grid_of_warm_up_starts():
    assert DEFAULT.dimensions["warmup_start"] == {"low": 10_000, "high": 50_000, "step": 5_000}


def test_optuna_draws_from_the_space():
    space = DEFAULT.overridden({
        "soft_label": {"choices": ["dynamic", "none"]}, "image": {"low": 4, "high": 6, "step": 0.5},
        "ramp": {"low": 100, "high": 4000, "log": True},
    })  # fmt: skip
    found = dict(space.distributions)
    assert tuple(found) == space.searched
    assert found["image"] == optuna.distributions.FloatDistribution(4, 6, step=0.5)
    assert found["warmup_start"] == optuna.distributions.IntDistribution(10_000, 50_000, step=5_000)
    assert found["ramp"] == optuna.distributions.IntDistribution(100, 4_000, log=True)
    assert found["soft_label"] == optuna.distributions.CategoricalDistribution(("dynamic", "none"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    defaults = space.defaults(BASE)
    assert defaults is not None
    study.enqueue_trial(defaults)
    for number in range(20):
        trial = study.ask(found)
        config = space.apply(BASE, trial.params)
        assert number > 0 or config == BASE
        assert config.loss.teacher_warmup.start == config.loss.code_warmup.start == trial.params["warmup_start"]
        study.tell(trial, 0.0)
    drawn = space.draw(20, seed=0)  # and so does the space itself
    assert all(space.holds(name, value) for values in drawn for name, value in values.items())
    assert drawn == space.draw(20, seed=0) != space.draw(20, seed=1)


@pytest.mark.parametrize(
    "override",
    [{"warmup_start": {"low": 0, "high": 20_000}}, {"prim": {"choices": [1, 4]}},
     {"warmup_start": {"low": 8_000, "high": 48_000, "step": 5_000}}, {"soft_label": {"choices": ["none", "pseudo"]}}],
)  # fmt: skip
def test_a_setting_outside_the_space_cannot_be_enqueued_but_is_run(override):
    space = DEFAULT.overridden(override)
    assert space.defaults(BASE) is None
    assert space.apply(BASE, {}) == BASE


@given(
    st.floats(0.01, 10), WEIGHTS, WEIGHTS, WEIGHTS, st.integers(0, 60_000),
    st.integers(1, 30_000),
)  # fmt: skip
def test_all_maxima_are_reached_after_the_ramp(prim, appearance, structure, cycle, start, ramp):
    names = ("prim", "appearance_code", "structure_code", "cycle", "warmup_start", "ramp")
    space = Space({"alpha": 0.5, **{name: {"low": 0, "high": 10} for name in names[:4]},
                   "warmup_start": {"low": 0, "high": 60_000}, "ramp": {"low": 1, "high": 30_000}})  # fmt: skip
    config = space.apply(BASE, dict(zip(names, (prim, appearance, structure, cycle, start, ramp), strict=True)))
    at = {when: weights(config.loss, RECIPE, start + when) for when in (0, 1, ramp - 1, ramp, ramp + 1)}
    assert all(value == 0 for value in vars(at[0]).values())
    assert at[ramp].prim == prim
    assert (at[ramp].appearance_code, at[ramp].structure_code, at[ramp].cycle) == (appearance, structure, cycle)
    assert at[ramp + 1].fine == at[ramp + 1].fine_real == 0.5 * prim
    assert at[ramp - 1].prim < prim
    assert at[1].prim > 0
    assert config.loss.teacher_warmup.end(prim) == start + ramp
    largest = max(appearance, structure, cycle)
    if largest > 0:
        assert config.loss.code_warmup.end(largest) == start + ramp
    assert ramp_end(config) == start + ramp


def test_a_setting_touches_only_what_it_names():
    apart = replace(
        BASE.loss, code_warmup=Warmup(start=20_000, slope=0.01), teacher_warmup=Warmup(start=40_000, slope=0.001)
    )
    base = replace(BASE, loss=apart)
    space = Space({name: {"low": 1, "high": 90_000} for name in ("warmup_start", "ramp")} | {
        "prim": {"low": 0, "high": 4}, "cycle": {"low": 0, "high": 4}, "alpha": {"low": 0, "high": 1},
        "soft_label": {"choices": ["dynamic", "none"]}, "generator_lr": {"low": 1e-5, "high": 1e-3},
    })  # fmt: skip
    assert space.apply(base, {"warmup_start": 40_000, "ramp": 2_000, "alpha": 0.2}) == base
    assert space.apply(base, {"alpha": 0.5}).loss == replace(apart, alpha=0.5)
    moved = space.apply(base, {"warmup_start": 10_000}).loss
    assert (moved.code_warmup, moved.teacher_warmup) == (
        Warmup(start=10_000, slope=0.01),
        Warmup(start=10_000, slope=0.001),
    )
    steeper = space.apply(base, {"prim": 4.0}).loss
    assert (steeper.code_warmup, steeper.teacher_warmup) == (apart.code_warmup, Warmup(start=40_000, slope=0.002))
    config = space.apply(base, {"soft_label": "none", "generator_lr": 5e-4})
    assert config == replace(
        base, recipe=replace(RECIPE, soft_label="none"), optim=replace(base.optim, generator_lr=5e-4)
    )


def test_what_public_work_suggests_can_be_searched_and_makes_the_run_that_it_names():
    names = [name for name, parameter in PARAMETERS.items() if parameter.published is not None]
    assert {"triplet", "circle", "label_smoothing", "ema", "neck", "pooling", "confidence", "optimizer"} <= set(names)
    space = DEFAULT.overridden(dict(_dimension(name, BASE) for name in names))
    assert space.dimensions["partners"] == {"choices": ["uniform", "rare_camera", "rare_pose"]}
    assert space.defaults(BASE) is not None  # the release's own setting is in it
    space.distances(BASE, NEVER)
    config = space.apply(BASE, {"triplet": 1.0, "neck": "bnneck", "confidence": "filter", "ema": 0.999, "pictures": 2})
    assert config == replace(
        BASE, metric=replace(BASE.metric, triplet=1.0), network=replace(BASE.network, neck="bnneck"), ema=0.999,
        feed=replace(BASE.feed, confidence="filter", pictures=2),
    )  # fmt: skip


def test_rate_warm_ups_are_suggested_in_proportion_to_the_run():
    assert _dimension("lr_warmup", BASE) == ("lr_warmup", {"choices": [0, 2_000, 8_333]})
    own = replace(BASE, optim=replace(BASE.optim, warmup_iterations=500))
    assert _dimension("lr_warmup", own)[1] == {"choices": [0, 500, 2_000, 8_333]}


def test_a_cosine_ends_with_the_run_and_milestones_come_back():
    space = DEFAULT.overridden(dict([_dimension("lr_decay", BASE)]))
    cosine = space.apply(BASE, {"lr_decay": "cosine"})
    assert cosine == replace(BASE, optim=replace(BASE.optim, cosine_end=100_000))
    assert PARAMETERS["lr_decay"].read(cosine) == "cosine"
    assert space.apply(cosine, {"lr_decay": "milestones"}) == BASE
    early = replace(BASE, optim=replace(BASE.optim, cosine_end=90_000))
    assert space.apply(early, {"lr_decay": "cosine"}) == early  # the base's own


@pytest.mark.parametrize("name", ["pretrained", "alpha"])
def test_a_name_that_no_published_values_stand_for_is_refused(name):
    with pytest.raises(ExperimentError, match=f"--set {name}: its name stands for no values of public work: a value,"):
        _dimension(name, BASE)
    with pytest.raises(ExperimentError, match=r"--set alhpa: a value, .* 'alpha=\{low: 0.1, high: 1\}'"):
        _dimension("alhpa", BASE)


def test_only_what_acts_before_the_warm_up_parts_prefixes():
    feeds = {"confidence": "weight", "least_confidence": 0.1, "pictures": 2, "share": 0.5, "last_share": 0.1}
    acts = {"partners": "rare_camera", "label_smoothing": 0.1, "triplet": 1.0, "circle": 1.0, "circle_margin": 0.3,
            "circle_scale": 64.0, "neck": "bnneck", "pooling": "gem", "instances": 4, "optimizer": "adamw",
            "lr_warmup": 10, "lr_decay": "cosine", "prim_dropout": 0.0, "ema": 0.99, "pretrained": "none"}  # fmt: skip
    for name, value in (feeds | acts).items():
        config = Space({name: value}).apply(BASE, {})
        assert config != BASE
        assert (prefix_of(config) == prefix_of(BASE)) == (name in feeds), name


def test_fixed_parameters_hold_for_the_first_trial_too():
    space = DEFAULT.overridden({"image": 3.0, "ramp": 1_000})
    config = space.apply(BASE, space.defaults(BASE) or {})
    assert config.loss.image == 3.0
    assert ramp_end(config) == 31_000
    assert config.loss.prim == 2.0


def test_values_of_a_trial_are_checked():
    with pytest.raises(SpaceError, match=r"image = 3: it is not searched here"):
        DEFAULT.apply(BASE, {"image": 3})
    with pytest.raises(SpaceError, match="unknown parameter 'imgae': did you mean 'image'"):
        DEFAULT.apply(BASE, {"imgae": 3})
    with pytest.raises(SpaceError, match="prim = -3: Input should be greater"):
        DEFAULT.apply(BASE, {"prim": -3})
    assert isinstance(DEFAULT.apply(BASE, {"ramp": 500.0}).loss.teacher_warmup.start, int)


HALVING, NEVER = StoppingRule(), StoppingRule(kind="none")


def refused(override: dict[str, object], base: DGNetConfig = BASE, stopping: StoppingRule = NEVER) -> str:
    with pytest.raises(SpaceError) as error:
        DEFAULT.overridden(override).distances(base, stopping)
    return str(error.value)


def test_a_space_that_does_not_fit_the_run_is_refused():
    assert "warmup_start up to 100,000 and ramp up to 8,000 end at iteration 108,000" in refused(
        {"warmup_start": 100_000}
    )
    assert "warmup_start up to 120,000" in refused({"warmup_start": {"low": 10, "high": 120_000}})
    assert "warmup_start up to 95,000 and ramp up to 8,000 end at iteration 103,000" in refused(
        {"warmup_start": {"choices": [10, 95_000]}}
    )
    assert "ramp up to 50,000 end at iteration 100,000: runs have" in refused({"ramp": {"low": 1, "high": 50_000}})
    short: dict[str, object] = {"warmup_start": {"low": 10, "high": 91_998}}
    assert "2 iterations are left after the latest ramp end" in refused(short, stopping=HALVING)
    assert DEFAULT.overridden(short).distances(BASE, NEVER) == ()
    # The first trial is the base, also where the space leaves it out.
    late = replace(BASE, loss=replace(BASE.loss, code_warmup=Warmup(start=99_000), teacher_warmup=Warmup(start=99_000)))
    assert "end at iteration 103,000" in refused({"warmup_start": {"low": 10, "high": 50_000}}, base=late)


def test_a_value_that_no_run_can_have_is_refused_before_any_trial():
    assert "instances = 3: a divisor of batch_size = 8 (in the space: instances)" in refused(
        {"instances": {"choices": [1, 3]}}
    )
    assert "pictures = 3: 1 or 2" in refused({"pictures": 3})


def test_a_space_is_printed():
    console = Console(file=io.StringIO(), width=200)
    console.print(DEFAULT.overridden({"soft_label": {"choices": ["dynamic", "none"]}}))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(name in text for name in PARAMETERS)
    for shown in ("10,000 to 50,000, step 5,000", "0.05 to 1, log", "dynamic, none", "0.0001"):
        assert shown in text


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Space.default(laptop(600))
