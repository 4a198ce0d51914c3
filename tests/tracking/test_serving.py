"""The served model weighs f_fine as its run says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.state import TrainState
from dgnet_core.methods import described
from dgnet_core.networks.modes import evaluating
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
