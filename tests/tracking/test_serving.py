"""The served model weighs f_fine as its run says, and draws what its method draws."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.types import DataType
from mlflow.types.schema import Array
from PIL import Image

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.state import TrainState
from dgnet_core.generation.grids import to_pixels
from dgnet_core.learning.augment import normalise
from dgnet_core.methods import METHODS, build, described
from dgnet_core.networks.modes import evaluating
from dgnet_platform.tracking import serving
from tests.helpers.generators import LENGTH, tiny_method, upright
from tests.helpers.tiny import tiny_config


def vectors(state: TrainState, pixels: torch.Tensor, config: DGNetConfig) -> np.ndarray:
    network = described(state, config)
    with evaluating(network):
        return network(pixels).numpy()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_similarities_are_weighed_with_the_runs_beta(beta):
    config = replace(tiny_config(), beta=beta)
    config = replace(config, step=replace(config.step, precision="float32"))
    state, size = TrainState.build(config, pretrained=False), config.network
    state.iteration = config.iterations
    pixels = torch.randint(256, (4, 3, size.height, size.width), dtype=torch.uint8)
    found = vectors(state, pixels, config)
    halves = [np.split(vectors(state, pixels, replace(config, beta=b)), [size.bottleneck], axis=1) for b in (0, 1)]
    prim = halves[0][0]
    fine = halves[1][1] * np.sqrt(2)
    np.testing.assert_allclose((1 + beta) * found @ found.T, prim @ prim.T + beta * fine @ fine.T, atol=1e-5)


def test_a_run_that_never_feeds_is_served_by_f_prim_alone():
    config = tiny_config()
    config = replace(config, recipe=replace(config.recipe, online_feeding=False))
    config = replace(config, step=replace(config.step, precision="float32"))
    state = TrainState.build(config, pretrained=False)
    pixels = torch.randint(256, (2, 3, config.network.height, config.network.width), dtype=torch.uint8)
    assert not vectors(state, pixels, config)[:, config.network.bottleneck :].any()


def png(picture: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def loaded(folder: Path) -> serving.Served:
    model = serving.Served()
    model.load_context(SimpleNamespace(artifacts={"network": str(folder)}))
    return model


@pytest.mark.parametrize("name", ["lsgan", "pg2gan", "pngan", "dgnet"])
def test_a_method_that_describes_no_people_is_served_by_what_it_draws(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    method = replace(METHODS[name], describe=None)
    monkeypatch.setitem(METHODS, name, method)  # so DG-Net draws from two pictures, as a new method may
    config = tiny_method(method)
    state = build(config)
    state.iteration = LENGTH  # a stage is a function of it
    torch.manual_seed(0)
    for network in state.networks.values():
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    signature, example = serving.export(state, config, tmp_path)
    height, width = config.network.height, config.network.width
    if method.invent is not None:
        invent = method.invent(state, config)
        assert signature.inputs.input_dict()["seed"].type is DataType.long
        given = pd.DataFrame({"seed": [5, 3, 5]}, index=[7, 8, 9])
        expected = torch.cat([invent(1, seed) for seed in (5, 3, 5)])
    else:
        assert method.draw is not None
        pixels, others = torch.randint(256, (2, 3, 3, height + 4, width), dtype=torch.uint8)
        joints = upright(height, width, 3)
        given = pd.DataFrame({"image": list(map(png, pixels))}, index=[7, 8, 9])
        if method.posed:
            assert signature.inputs.input_dict()["joints"].type == Array(Array(DataType.double))
            given["joints"] = joints.tolist()
        else:
            given["target"] = list(map(png, others))
        targets = joints if method.posed else normalise(others, height, width)
        expected = method.draw(state, config)(normalise(pixels, height, width), targets)
    found = loaded(tmp_path).predict(None, given)
    assert isinstance(found, pd.DataFrame)
    assert list(found.index) == [7, 8, 9]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture in found["image"]])
    assert pictures.shape == (3, height, width, 3)
    # both draw from the same numbers, in batches of other sizes
    assert np.abs(pictures.astype(int) - to_pixels(expected).permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1
    assert len({picture.tobytes() for picture in pictures}) == (2 if method.invent is not None else 3)
    assert len(loaded(tmp_path).predict(None, example)) == 1


def test_what_cannot_be_drawn_is_named(tmp_path: Path):
    config = tiny_method(METHODS["pngan"])
    _, example = serving.export(build(config), config, tmp_path)
    model = loaded(tmp_path)
    for column, value, said in (
        ("image", b"no picture", "row 0, column 'image': .*: send the bytes of an image file"),
        ("joints", [[1.0, 2.0]] * 18, "row 0, column 'joints': send 18 lists of x, y and visibility"),
        ("joints", [[1.0, 2.0, 3.0]] * 17 + [[1.0]], "row 0, column 'joints': send 18 lists"),
    ):
        with pytest.raises(ValueError, match=said):
            model.predict(None, example.assign(**{column: [value]}))
