"""BatchNorm's statistics estimated anew: means over the given batches, and nothing of it stays."""

from copy import deepcopy

import pytest
import torch

from dgnet_core.dgnet.state import TrainState
from dgnet_core.networks.batch_norm import GroupedBatchNorm
from dgnet_core.networks.statistics import reestimated
from tests.helpers.tiny import assert_same, tiny_batch, tiny_config, tiny_state


def tiny_images(count: int) -> list[torch.Tensor]:
    config = tiny_config()
    return [tiny_batch(config, iteration).images[0] for iteration in range(count)]


def test_a_layer_has_the_mean_of_its_batches():
    layer = GroupedBatchNorm(3)
    layer.running_mean.fill_(9.0)
    batches = [torch.randn(5, 3, 4, 2) * (number + 1) for number in range(4)]
    before = deepcopy(layer.state_dict())
    with reestimated(layer, layer, batches):
        assert not layer.training or layer.training == deepcopy(layer).training
        expected = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
        assert torch.allclose(layer.running_mean, expected, atol=1e-6)
        unbiased = torch.stack([batch.transpose(0, 1).flatten(1).var(dim=1) for batch in batches]).mean(dim=0)
        assert torch.allclose(layer.running_var, unbiased, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_network_is_afterwards_as_it_was_in_every_bit(one_thread):
    state, images = tiny_state(tiny_config()), tiny_images(3)
    untouched = tiny_state(tiny_config())
    network = state.appearance_encoder
    with torch.no_grad(), reestimated(network, network.describe, images):
        network.eval()
        first = network.describe(images[0])
        assert not torch.equal(first[0], untouched.appearance_encoder.eval().describe(images[0])[0])
    assert_same(state, untouched)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_it_depends_on_the_weights_and_the_batches_alone(one_thread):
    """Whatever the running statistics were: they wander, and with them what an evaluation says."""
    images, found = tiny_images(3), []
    for shift in (0.0, 1.0):
        state: TrainState = tiny_state(tiny_config())
        for module in state.appearance_encoder.modules():
            if isinstance(module, GroupedBatchNorm):
                module.running_mean += shift
        network = state.appearance_encoder
        with torch.no_grad(), reestimated(network, network.describe, images):
            found.append(network.eval().describe(images[0])[0])
    assert torch.equal(*found)


def test_an_error_leaves_the_network_as_it_was():
    layer = GroupedBatchNorm(3).eval()

    def fails(_: torch.Tensor) -> None:
        layer(torch.randn(4, 3))
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"), reestimated(layer, fails, [torch.zeros(1)]):
        pass
    assert not layer.training
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert not layer._forward_pre_hooks
