"""Layers that the compared generators share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgnet_core.learning.losses import against
from dgnet_core.networks.batch_norm import BatchNorm
from dgnet_core.networks.gan import Residual, UNet, conv, normal_, patch_discriminator


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (7, 1), (1, 1), (3, 2), (5, 2), (4, 2)])
def test_convolutions_keep_the_size_or_halve_it_and_transposed_ones_double_it(kernel, stride):
    x = torch.rand(2, 3, 12, 8)
    assert conv(3, 5, kernel, stride)(x).shape == (2, 5, 12 // stride, 8 // stride)
    if stride > 1:
        assert conv(3, 5, kernel, stride, transposed=True)(x).shape == (2, 5, 12 * stride, 8 * stride)


def test_padding_norm_and_activation():
    x = torch.rand(2, 3, 6, 6)
    zero, reflected = conv(3, 4, 3, act="none"), conv(3, 4, 3, act="none", reflect=True)
    reflected.load_state_dict(zero.state_dict())
    weight, bias = zero.get_parameter("0.weight"), zero.get_parameter("0.bias")
    assert torch.allclose(zero(x), F.conv2d(x, weight, bias, padding=1), atol=1e-6)
    assert torch.allclose(reflected(x), F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight, bias), atol=1e-6)
    assert [type(layer) for layer in conv(3, 4, 3, norm="batch", act="leaky")] == [
        nn.Conv2d, BatchNorm, nn.LeakyReLU,
    ]  # fmt: skip
    plain = conv(3, 4, 3, norm="instance", bias=False)
    assert [name for name, _ in plain.named_parameters()] == ["0.weight"]
    assert plain(x).min() == 0


@pytest.mark.parametrize("ends", ["inside", "outside", "never"])
def test_residual_block(ends):
    block = Residual(4, act="leaky", scale=0.1, ends=ends)
    x = torch.randn(2, 4, 5, 5)
    (w1, b1), (w2, b2) = ((p.get_parameter("0.weight"), p.get_parameter("0.bias")) for p in block.children())
    inner = F.conv2d(F.leaky_relu(F.conv2d(x, w1, b1, padding=1), 0.2), w2, b2, padding=1)
    inner = F.leaky_relu(inner, 0.2) if ends == "inside" else inner
    wanted = x + 0.1 * inner
    assert torch.allclose(block(x), F.relu(wanted) if ends == "outside" else wanted, atol=1e-6)


def test_u_net_with_a_bottleneck_passes_all_structure_through_it():
    net = UNet(5, 4, 3, code=2, bottom=(4, 2))
    x = torch.rand(2, 5, 16, 8)
    assert net(x).shape == (2, 3, 16, 8)
    assert net.squeeze.out_features == 2
    assert [net.get_submodule(f"decoder.{k}.first.0").in_channels for k in range(3)] == [4 + 12, 8 + 8, 4 + 4]


def test_u_net_without_one_has_no_skip_at_the_first_level():
    net = UNet(6, 4, 3)
    assert [net.get_submodule(f"decoder.{k}.0.0").in_channels for k in range(3)] == [12 + 12, 4 + 8, 4]
    x = torch.rand(2, 6, 16, 8)
    assert net(x).shape == (2, 3, 16, 8)


def test_patch_discriminators_shapes():
    assert patch_discriminator(3, 2, norm="instance", last_pad=0)(torch.rand(1, 3, 256, 128)).shape == (1, 1, 26, 10)
    assert patch_discriminator(21, 2, norm="batch", last_pad=1)(torch.rand(1, 21, 256, 128)).shape == (1, 1, 30, 14)


def test_adversarial_loss_against_a_label():
    scores = torch.tensor([[0.5, -1.0]])
    assert against(scores, 1.0, "lsgan") == pytest.approx((0.25 + 4) / 2)
    assert against(scores, 0.0, "lsgan") == pytest.approx((0.25 + 1) / 2)
    softplus = F.softplus
    assert against(scores, 1.0, "nsgan") == pytest.approx(float(softplus(-scores).mean()))
    assert against(scores, 0.0, "nsgan") == pytest.approx(float(softplus(scores).mean()))
    smoothed = 0.8 * softplus(-scores) + 0.2 * softplus(scores)
    assert against(scores, 0.8, "nsgan") == pytest.approx(float(smoothed.mean()))


def test_normal_weights():
    torch.manual_seed(0)
    net = nn.Sequential(conv(8, 32, 3), conv(32, 16, 4, 2, transposed=True))
    normal_(net)
    weights = torch.cat([p.detach().flatten() for name, p in net.named_parameters() if name.endswith("weight")])
    assert weights.std() == pytest.approx(0.02, rel=0.05)
    assert all((p == 0).all() for name, p in net.named_parameters() if name.endswith("bias"))
