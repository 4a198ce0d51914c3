"""The networks: shapes, sizes, first weights, norms that know several batches, and convolutions that never upsample."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgnet_core.dgnet.networks import (
    AppearanceEncoder,
    Decoder,
    Discriminator,
    StructureEncoder,
    local_contrast,
    pool_code,
    to_gray,
)
from dgnet_core.dgnet.state import TrainState
from dgnet_core.networks.batch_norm import GroupedBatchNorm
from dgnet_core.networks.blocks import LayerNorm, adain, upsampled_conv
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import Head, ResNetTrunk, load_imagenet
from dgnet_core.teacher.networks import Teacher
from tests.helpers.tiny import tiny_config, tiny_teacher

PAPER = NetworkConfig(pretrained="none")
TINY = tiny_config().network


def test_paper_sizes() -> None:
    x = torch.randn(2, 3, 256, 128)
    with torch.no_grad():
        code = AppearanceEncoder(PAPER, 751).eval()(x)
        structure = StructureEncoder(PAPER)(to_gray(x))
        image = Decoder(PAPER)(structure, code)
        scores = Discriminator(PAPER)(x)
        label = Teacher(PAPER, 751).labels(x, groups=1)
    assert code.shape == (2, 2048, 4)
    assert pool_code(code).shape == (2, 2048)
    assert structure.shape == (2, 128, 64, 32)
    assert image.shape == x.shape
    assert [s.shape[1:] for s in scores] == [(1, 64, 32), (1, 32, 16), (1, 16, 8)]
    assert label.shape == (2, 751)
    torch.testing.assert_close(label.sum(dim=1), torch.ones(2))


def test_pooled_code_is_the_global_maximum() -> None:
    trunk = AppearanceEncoder(TINY, 3).eval()
    x = torch.randn(2, 3, 40, 20)
    with torch.no_grad():
        torch.testing.assert_close(pool_code(trunk(x)), trunk.trunk(x).amax(dim=(2, 3)))


def test_structure_code_is_blind_to_colour() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 24, 12)
    torch.testing.assert_close(to_gray(x), to_gray(x[:, [2, 0, 1]]), rtol=0, atol=1e-6)  # sums in another order


def test_local_contrast_by_hand_and_blind_to_lightness() -> None:
    torch.manual_seed(0)
    gray = torch.randn(2, 1, 24, 12)
    padded = F.pad(gray, (1,) * 4, mode="replicate")
    stands_out = gray[1, 0, 10, 5] - padded[1, 0, 10:13, 5:8].mean()
    around = [gray[1, 0, y, x] - padded[1, 0, y : y + 3, x : x + 3].mean() for y in range(6, 15) for x in range(1, 10)]
    expected = stands_out / (torch.stack(around).square().mean().sqrt() + 0.1)
    torch.testing.assert_close(local_contrast(gray)[1, 0, 10, 5], expected)
    torch.testing.assert_close(local_contrast(gray + 3), local_contrast(gray), rtol=0, atol=1e-5)
    assert torch.equal(local_contrast(-gray), -local_contrast(gray))
    shirt = torch.zeros(1, 1, 24, 12)
    shirt[:, :, 8:20] = 2.0
    assert local_contrast(shirt)[0, 0, [2, 13]].abs().max() == 0, "inside of a region nothing tells how light it is"
    assert local_contrast(shirt)[0, 0, [7, 8]].abs().min() > 0.5, "but its edge is seen"


def test_local_contrast_has_a_gradient_where_pictures_are_flat() -> None:
    gray = torch.zeros(1, 1, 24, 12)
    gray[:, :, 18:] = 1.0
    gray.requires_grad_()
    local_contrast(gray).square().sum().backward()
    assert gray.grad is not None
    assert gray.grad.isfinite().all()
    assert gray.grad.abs().max() > 0


def test_the_structure_encoder_reads_contrast_if_asked() -> None:
    torch.manual_seed(0)
    config = replace(TINY, structure_input="contrast")
    encoder, plain = StructureEncoder(config), StructureEncoder(TINY)
    plain.load_state_dict(encoder.state_dict())
    gray = to_gray(torch.randn(2, 3, config.height, config.width))
    with torch.no_grad():
        assert torch.equal(encoder(gray), plain(local_contrast(gray)))
    with pytest.raises(ValueError, match="structure_input"):
        replace(TINY, structure_input="edges")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_batch_norm_equals_separate_passes(groups: int) -> None:
    torch.manual_seed(0)
    ours, theirs = GroupedBatchNorm(3), torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    x = torch.randn(groups * 4, 3, 5, 2)
    out = ours(x, groups, track=True)
    torch.testing.assert_close(out, torch.cat([theirs(chunk) for chunk in x.chunk(groups)]))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours(x, groups)  # untracked
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_layer_norm_and_adain_by_their_definitions() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6)
    norm = LayerNorm(4)
    mean, std = x.flatten(1).mean(1), x.flatten(1).std(1)
    expected = (x - mean[:, None, None, None]) / (std[:, None, None, None] + 1e-5)
    expected = expected * norm.gamma[:, None, None] + norm.beta[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    scale, bias = torch.randn(3, 4), torch.randn(3, 4)
    out = adain(x, scale, bias)
    torch.testing.assert_close(out.mean(dim=(2, 3)), bias)
    torch.testing.assert_close(out.std(dim=(2, 3), unbiased=False), scale.abs(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 7), (5, 3), (8, 8)])
def test_phases_equal_upsampling_then_convolving(height: int, width: int) -> None:
    torch.manual_seed(0)
    shapes = (2, 3, height, width), (4, 3, 5, 5), (4,)
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    plain = F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), (2,) * 4, mode="reflect"), weight, bias)
    ours = upsampled_conv(x, weight, bias)
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, weight, bias), direction)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, weight, bias), direction), expected)


def test_a_feature_is_kept_where_its_draw_reaches_p_and_scaled_up() -> None:
    head = Head(2, 4, 4, dropout=0.75)
    torch.nn.init.eye_(head.classifier.weight)
    feature, draws = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.75, 0.74, 0.9]])
    assert head.logits(feature, draws).tolist() == [[0, 8, 0, 16]]
    assert head.logits(feature).tolist() == feature.tolist()


def test_each_head_has_its_own_dropout() -> None:
    encoder = AppearanceEncoder(replace(TINY, prim_dropout=0.1, fine_dropout=0.2), 3)
    assert (encoder.prim.dropout, encoder.fine.dropout) == (0.1, 0.2)


def test_teachers_labels_by_their_definition() -> None:
    config = tiny_config()
    given = tiny_teacher(config).eval()
    torch.nn.init.normal_(given.head.classifier.weight)
    teacher = TrainState.build(config, teacher=given).teacher
    assert teacher is not None
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    x = torch.randn(3, 3, 24, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = teacher.labels(x, groups=1)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name

    def odds(images: Tensor) -> Tensor:
        assert teacher.head.reduce is not None
        feature = teacher.trunk(images).mean(dim=(2, 3)) @ teacher.head.reduce.weight.T + teacher.head.reduce.bias
        feature = (feature - feature.mean(0)) / (feature.var(0, unbiased=False) + 1e-5).sqrt()
        feature = feature * teacher.head.norm.weight + teacher.head.norm.bias
        return (feature @ teacher.head.classifier.weight.T + teacher.head.classifier.bias).exp()

    def share(values: Tensor) -> Tensor:
        return values / values.sum(dim=1, keepdim=True)

    own, mirrored = share(odds(x)), share(odds(x.flip(3)))
    assert (own - mirrored).abs().max() > 0.1
    torch.testing.assert_close(labels, (own + mirrored) / 2)


def deviations(*networks: nn.Module) -> Iterator[tuple[str, float, int, int]]:
    """Name, deviation, fan-in and fan-out of all large weights; biases must be 0."""
    for network in networks:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is None or not layer.bias.any(), name
                weight = layer.weight.detach()
                if weight.numel() > 1000:
                    window = weight[0, 0].numel()
                    yield name, float(weight.std()), weight.shape[1] * window, weight.shape[0] * window


def test_weights_start_as_in_the_release() -> None:
    torch.manual_seed(0)
    config = replace(TINY, appearance_width=8, structure_width=8, adain_width=64, discriminator_width=16)
    encoder = AppearanceEncoder(config, 100)
    trunk = list(deviations(encoder.trunk))
    generator = list(deviations(StructureEncoder(config), Decoder(config)))
    discriminator = list(deviations(Discriminator(config)))
    classifiers = list(
        deviations(encoder.prim.classifier, encoder.fine.classifier, Teacher(config, 100).head.classifier)
    )
    assert [len(found) for found in (trunk, generator, discriminator, classifiers)] == [12, 45, 12, 3]
    for name, deviation, _, fan_out in trunk:
        assert deviation == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
    for name, deviation, fan_in, _ in generator:
        assert deviation == pytest.approx((2 / fan_in) ** 0.5, rel=0.1), name
    for name, deviation, *_ in discriminator:
        assert deviation == pytest.approx(0.02, rel=0.1), name
    for name, deviation, *_ in classifiers:
        assert deviation == pytest.approx(0.001, rel=0.1), name


def test_adain_starts_near_identity_if_asked() -> None:
    """All of the release's weights but those of the last layers, which are a tenth, about scales of 1."""
    torch.manual_seed(0)
    release = Decoder(tiny_config().network)
    torch.manual_seed(0)
    identity = Decoder(replace(tiny_config().network, adain_start="identity"))
    for name, weight in release.state_dict().items():
        last = name.startswith(("scales", "biases")) and name.split(".")[2] == "4"
        if last and name.endswith("bias"):
            wanted = torch.full_like(weight, 1.0 if name.startswith("scales") else 0.0)
        else:
            wanted = weight / 10 if last else weight
        torch.testing.assert_close(identity.state_dict()[name], wanted)


def test_trunk_loads_torchvision_weights(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    trunk = ResNetTrunk(PAPER, last_stride=2).eval()
    load_imagenet(trunk, NetworkConfig(pretrained=str(tmp_path / "resnet50.pth")))
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(theirs.children())[:-2])(x)  # without pooling and classifier
        torch.testing.assert_close(trunk(x), expected, rtol=1e-4, atol=1e-4)


def test_imagenet_sources_that_cannot_be_had(tmp_path, monkeypatch) -> None:
    trunk = ResNetTrunk(TINY, last_stride=1)
    with pytest.raises(ValueError, match=r"network\.pretrained to 'none' or to a file"):
        load_imagenet(trunk, NetworkConfig(appearance_layers=(1, 1, 1, 1)))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_imagenet(trunk, NetworkConfig(pretrained="nowhere.pth"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of this ResNet"):
        load_imagenet(trunk, NetworkConfig(pretrained=str(tmp_path / "other.pth")))

    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(RuntimeError, match=r"Set network\.pretrained to the path .*resnet50-0676ba61\.pth"):
        load_imagenet(ResNetTrunk(PAPER, last_stride=1), NetworkConfig())


@pytest.mark.parametrize("shape", [(8, 6, 5, 3), (8, 6)], ids=["maps", "vectors"])
def test_batches_in_one_tensor_are_normalised_by_one_operator_each_way(shape: tuple[int, ...]):
    """With the values and gradients of a pass per batch, whatever the gradient's memory format."""

    class Names(TorchDispatchMode):
        found: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    norm = GroupedBatchNorm(6).double()
    leaves = [x.requires_grad_(), norm.weight, norm.bias]
    with Names() as names:
        found = torch.autograd.grad((norm(x, 4) * weights).sum(), leaves)
    counted = Counter(name for name in names.found if "norm" in name)
    assert counted == {"native_group_norm": 1, "native_group_norm_backward": 1}
    apart = torch.cat([norm(part) for part in x.chunk(4)])
    for one, other in zip(found, torch.autograd.grad((apart * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
