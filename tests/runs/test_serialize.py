"""Configurations to dictionaries and back."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgnet_core.dgnet import config as presets
from dgnet_core.dgnet.config import DGNetConfig, LossConfig, OptimConfig, RecipeConfig, WatchConfig
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.networks.config import NetworkConfig
from dgnet_platform.storage.serialize import ConfigError, from_dict, to_dict

weights = st.floats(0, 100)
positive = st.floats(1e-6, 100)
probabilities = st.floats(0, 1)
counts = st.integers(1, 100)
warmups = st.builds(Warmup, start=st.integers(0, 10**6), slope=positive)
configs = st.builds(
    DGNetConfig,
    num_classes=st.integers(2, 5000),
    seed=st.integers(0, 2**63 - 1),
    iterations=counts,
    batch_size=st.integers(2, 64),
    network=st.builds(
        NetworkConfig,
        height=st.integers(10, 64).map(lambda n: 4 * n),
        width=st.integers(10, 64).map(lambda n: 4 * n),
        appearance_layers=st.tuples(counts, counts, counts, counts),
        aspp_dilations=st.tuples(*[st.integers(1, 9)] * 3),
        pretrained=st.text(),
        prim_dropout=st.floats(0, 0.99),
    ),
    loss=st.builds(LossConfig, image=weights, alpha=weights, code_warmup=warmups, teacher_warmup=warmups),
    recipe=st.builds(
        RecipeConfig,
        detach_appearance=st.booleans(),
        code_teaches_decoder=st.booleans(),
        reencode_probability=probabilities,
        gan=st.sampled_from(["lsgan", "nsgan"]),
        soft_label=st.sampled_from(["dynamic", "none"]),
    ),
    optim=st.builds(
        OptimConfig,
        adam_betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
        milestones=st.lists(counts, unique=True).map(lambda numbers: tuple(sorted(numbers))),
        clip_norm=st.none() | positive,
    ),
    augment=st.builds(AugmentConfig, flip=probabilities, pad=st.integers(0, 20)),
    step=st.builds(StepConfig, precision=st.sampled_from(["float32", "bfloat16"]), compile=st.booleans()),
    watch=st.builds(WatchConfig, factor=st.floats(1.01, 10)),
)


@given(configs)
def test_round_trip_through_json(config: DGNetConfig):
    assert from_dict(DGNetConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("config", [presets.paper(751), presets.laptop(12)])
def test_presets_round_trip_and_every_field_is_there(config: DGNetConfig):
    values = to_dict(config)
    assert from_dict(DGNetConfig, values) == config
    assert values["network"]["appearance_layers"] == list(config.network.appearance_layers)
    assert values["loss"]["code_warmup"]["start"] == config.loss.code_warmup.start


def test_missing_keys_take_their_defaults():
    assert from_dict(DGNetConfig, {"num_classes": 3}) == DGNetConfig(num_classes=3)
    assert from_dict(DGNetConfig, {"num_classes": 3, "loss": {"image": 1}}).loss == LossConfig(image=1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'num_classes' is missing and has no default"),
        ({"network": {"heigth": 64}}, "unknown key 'network.heigth': did you mean 'network.height'"),
        ({"height": 64}, "unknown key 'height': did you mean 'network.height'"),
        ({"start": 1}, "unknown key 'start': did you mean 'loss.code_warmup.start'"),
        ({"network": {"zzz": 1}}, "unknown key 'network.zzz': network has height, width"),
        ({1: 2}, "unknown key '1'"),
        ({"network": 3}, "network is 3: a section with the fields of NetworkConfig is needed"),
        ({"network": {"height": "64"}}, "network.height is '64': an integer is needed"),
        ({"network": {"height": 64.0}}, "network.height is 64.0: an integer is needed"),
        ({"batch_size": True}, "batch_size is True: an integer is needed"),
        ({"loss": {"image": "5"}}, "loss.image is '5': a number is needed"),
        ({"loss": {"image": True}}, "loss.image is True: a number is needed"),
        ({"optim": {"clip_norm": "none"}}, "optim.clip_norm is 'none': a number is needed"),
        ({"optim": {"milestones": 5}}, "optim.milestones is 5: a list is needed"),
        ({"optim": {"milestones": [5, "6"]}}, r"optim.milestones\[1\] is '6': an integer is needed"),
        ({"optim": {"adam_betas": [0.5]}}, r"'optim.adam_betas\[1\]' is missing"),
        ({"optim": {"adam_betas": [0, 0, 0]}}, r"optim.adam_betas is \[0, 0, 0\]: Tuple should have at most 2 items"),
        ({"num_clases": 3, "batch_size": "x"}, "unknown key 'num_clases': did you mean 'num_classes'"),
        ({"recipe": {"gan": "wgan"}}, "recipe.gan is 'wgan': one of 'lsgan' or 'nsgan' is needed"),
        ({"step": {"compile": 1}}, "step.compile is 1: true or false is needed"),
        ({"loss": {"image": -1}}, "loss: LossConfig.image = -1.0: a weight is a finite number >= 0"),
        ({"seed": -1}, "DGNetConfig.seed = -1"),
    ],
)
def test_errors_name_the_key(values: dict[Any, Any], message: str):
    if values:
        values = {"num_classes": 3} | values
    with pytest.raises(ConfigError, match=message):
        from_dict(DGNetConfig, values)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    choice: Literal[1, "one", True] = 1
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    nested: tuple[tuple[int, str], ...] = field(default=())


@pytest.mark.parametrize(
    "config",
    [
        Outer(),
        Outer(choice="one", inner=Inner(size=2)),
        Outer(choice=True, inners=(Inner(), Inner(size=5)), nested=((1, "a"), (2, "b"))),
    ],
)
def test_other_shapes_of_configuration(config: Outer):
    found = from_dict(Outer, json.loads(json.dumps(to_dict(config))))
    assert found == config
    assert type(found.choice) is type(config.choice)


def test_errors_deep_inside():
    with pytest.raises(ConfigError, match=r"unknown key 'inners\[1\].sise': did you mean 'inners\[1\].size'"):
        from_dict(Outer, {"inners": [{}, {"sise": 3}]})
    with pytest.raises(ConfigError, match=r"inner is 1.5: a section with the fields of Inner is needed"):
        from_dict(Outer, {"inner": 1.5})
    with pytest.raises(TypeError, match="watch holds a set"):
        to_dict(replace(presets.laptop(3), watch={1, 2}))
