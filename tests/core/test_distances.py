"""Distances between sets of pictures, the FID network, diversity, and people without their background."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_fid import inception as pytorch_fid
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from dgnet_core.generation import distances
from dgnet_core.generation.distances import (
    TooFewPicturesError,
    diversity,
    dssim,
    frechet_distance,
    identity_pairs,
    kernel_distance,
    lab,
    moments,
)
from dgnet_core.generation.inception import (
    InceptionFID,
    inception_input,
    read_inception,
    tensorflow_resize,
)
from dgnet_core.generation.people import identity_ranks, person_fidelity, person_figures
from dgnet_platform.data.people.people import People

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------------------------
# Frechet and kernel distance


def test_frechet_distance_of_gaussians_in_closed_form():
    """Gaussians with a common basis: |m1 - m2|^2 + sum of (s1 - s2)^2."""
    generator = torch.Generator().manual_seed(0)
    D = 6
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    deviations = [torch.rand(D, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2)]
    means = [torch.randn(D, generator=generator, dtype=torch.float64) for _ in range(2)]
    gaussians = [
        distances.Moments(mean=mean, covariance=basis @ torch.diag(deviation**2) @ basis.T)
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(*gaussians) == pytest.approx(float(expected), rel=1e-12)
    assert frechet_distance(gaussians[0], gaussians[0]) == pytest.approx(0, abs=1e-12)

    drawn = [
        torch.randn(200_000, D, generator=generator, dtype=torch.float64) * deviation @ basis.T + mean
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    assert frechet_distance(*map(moments, drawn)) == pytest.approx(float(expected), rel=0.02)
    few = moments(drawn[0][:50])
    assert few.covariance.numpy() == pytest.approx(np.cov(drawn[0][:50].numpy().T), rel=1e-9)


def test_a_covariance_of_too_few_pictures_is_refused():
    moments(torch.rand(9, 8))
    with pytest.raises(TooFewPicturesError, match="8 pictures: the Frechet distance over 8 features needs more than 8"):
        moments(torch.rand(8, 8))
    with pytest.raises(TooFewPicturesError, match="19 pictures: the kernel distance needs 20"):
        kernel_distance(torch.rand(19, 8), torch.rand(30, 8))


class Flat(nn.Module):
    """Pictures (N, 1, 1, D) are their own features, as torchmetrics takes them."""

    num_features = 5

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_distances_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(60, 5, generator=generator), torch.rand(44, 5, generator=generator) + 0.2
    oracle = FrechetInceptionDistance(Flat()).set_dtype(torch.float64)
    for features, real in ((first, True), (second, False)):
        oracle.update(features.double()[:, None, None], real=real)
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(float(oracle.compute()), rel=1e-6)

    found = kernel_distance(first, second, subsets=4, seed=3)
    assert found.subset_size == 22
    rng = np.random.default_rng(3)
    expected = []
    for _ in range(4):
        x, y = (values.double()[rng.choice(len(values), 22, replace=False)] for values in (first, second))
        expected.append(float(poly_mmd(x, y)))
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert found.deviation == pytest.approx(np.std(expected), rel=1e-4)
    same = kernel_distance(torch.rand(900, 5, generator=generator), torch.rand(900, 5, generator=generator))
    assert abs(same.mean) < 3 * same.deviation < 0.05 * found.mean


# ------------------------------------------------------------------------------------------------------------
# The FID network


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights in the layout of the FID network's."""
    torch.manual_seed(0)
    network = InceptionFID()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "weights-inception.pth"
    torch.save(network.state_dict(), path)
    return path


def noise(count: int, height: int = 128, width: int = 64) -> Tensor:
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_pytorch_fid(weights: Path, monkeypatch: pytest.MonkeyPatch):
    network, pixels = read_inception(weights), noise(2)
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    oracle = pytorch_fid.InceptionV3().eval()  # resizes by itself
    with torch.no_grad():
        found, (expected,) = network(inception_input(pixels, "legacy_pytorch")), oracle(pixels / 255)
    assert expected.shape == (2, 2048, 1, 1)
    assert float((found - expected[:, :, 0, 0]).abs().max()) < 1e-4 * float(expected.abs().max())
    assert not network.training


def test_resizing_is_that_of_each_mode():
    pixels = noise(2)
    large = np.stack([np.asarray(_picture(p).resize((128, 256), Image.Resampling.BICUBIC)) for p in pixels])
    inside = tensorflow_resize(torch.from_numpy(large).permute(0, 3, 1, 2).float(), 299, 299)
    found = inception_input(pixels, "table2") * 128 + 128
    assert (
        float(((found - inside).abs() > 0.01).float().mean()) < 1e-3
    )  # PIL's fixed point rounds a value in 10,000 other
    assert float((found - inside).abs().max()) < 1.01

    channels = [Image.fromarray(c.numpy().astype(np.float32)) for c in pixels[0]]
    floats = np.stack([np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels]).clip(0, 255)
    assert (inception_input(pixels[:1], "clean")[0] * 128 + 128).numpy() == pytest.approx(floats, abs=1e-2)

    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    assert tensorflow_resize(ramp, 2, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    rows = pixels[0, 0].double().numpy()
    for size in (299, 128):  # NumPy's interpolation repeats edges too
        rows = np.stack([np.interp(np.arange(size) * len(r) / size, np.arange(len(r)), r) for r in rows]).T
    assert tensorflow_resize(pixels.float(), 128, 299)[0, 0].numpy() == pytest.approx(rows, abs=1e-3)
    legacy = inception_input(
        torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2), "legacy_pytorch"
    )
    assert (float(legacy.min()), float(legacy.max())) == pytest.approx((-1, 1))


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def test_a_file_of_another_network_is_named(weights: Path, tmp_path: Path):
    tensors = torch.load(weights, weights_only=True)
    path = tmp_path / "file.pth"

    def refused(content: object, match: str) -> None:
        torch.save(content, path)
        with pytest.raises(ValueError, match=match) as caught:
            read_inception(path)
        assert "weights-inception-2015-12-05-6726825d.pth of torch-fidelity" in str(caught.value)
        assert str(path) in str(caught.value)

    refused(
        {**tensors, "AuxLogits.fc.weight": torch.zeros(1), "fc.weight": torch.zeros(1000, 2048)},
        "Inception3 for 1,000 cl",
    )
    resnet = {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}
    refused(resnet, "is torchvision's ResNet, which is for --resnet: the FID network's file is needed")
    other = {name: torch.zeros(1) for name in ("conv1.weight", "conv2.weight", "conv3.weight")}
    refused(other, r"first tensors are conv1.weight, conv2.weight; \d+ of \d+ are missing, such as Conv2d_1a_3x3")
    refused({"state_dict": other}, "first tensors are none; ")
    refused({**tensors, "fc.weight": torch.zeros(10, 2048)}, r"fc.weight is \(10, 2048\), \(1008, 2048\) is needed")
    refused({**tensors, "fc.bias": torch.full((1008,), torch.nan)}, "damaged .fc.bias holds NaN")
    refused([1, 2], "holds a list")
    path.write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="no PyTorch file of tensors"):
        read_inception(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_inception(tmp_path / "missing.pth")
    old = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, path)  # as old PyTorch versions wrote it
    assert torch.equal(read_inception(path).fc.weight, tensors["fc.weight"])


# ------------------------------------------------------------------------------------------------------------
# Diversity


@pytest.mark.parametrize(("height", "width"), [(128, 64), (256, 128)])
def test_dssim_is_that_of_scikit_image(height: int, width: int):
    people = People(0, height=height, width=width)
    pictures = np.stack([people.picture(1, camera, 0) for camera in (1, 2, 3)])
    pixels, pairs = torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.tensor([[0, 1], [2, 1], [1, 1]])
    colours = [rgb2lab(picture) for picture in pictures]
    assert lab(pixels).permute(0, 2, 3, 1).numpy() == pytest.approx(np.stack(colours), abs=1e-3)
    found = dssim(pixels, pairs)
    for value, (i, j) in zip(found.tolist(), pairs.tolist(), strict=True):
        similarity: Any = structural_similarity(colours[i], colours[j], data_range=100, channel_axis=2)
        assert value == pytest.approx((1 - similarity) / 2, abs=1e-5)
    assert found[2] == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match=f"pictures of 6 x {width}"):
        dssim(pixels[:, :, :6], pairs)


def test_lab_is_the_standards():
    """Values of the CIE for sRGB's primaries, D65."""
    colours = {
        (255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.74, -86.18, 83.18), (0, 0, 255): (32.30, 79.19, -107.86), (9, 9, 9): (2.43, 0, 0),
    }  # fmt: skip
    pixels = torch.tensor([*colours], dtype=torch.uint8)[:, :, None, None]
    assert lab(pixels)[..., 0, 0].numpy() == pytest.approx(np.array([*colours.values()]), abs=0.05)


def test_pairs_and_rounds():
    identities = np.array([3, 3, 3, 7, 7, 9, 0, 0, -1, -1])
    pairs = identity_pairs(identities, 200, 2)
    assert pairs.shape == (2, 400, 2)
    assert (identities[pairs[..., 0]] == identities[pairs[..., 1]]).all()
    assert (pairs[..., 0] != pairs[..., 1]).all()
    assert set(identities[pairs].ravel()) == {3, 7}
    of_three = pairs[identities[pairs[..., 0]] == 3]
    assert (
        np.bincount(of_three[:, 0] * 3 + of_three[:, 1])[[1, 2, 3, 5, 6, 7]].min() > 30
    )  # each pair about equally often
    assert (pairs == identity_pairs(identities, 200, 2)).all()
    assert (pairs[0] != pairs[1]).any()
    assert identity_pairs(np.array([1, 2, 0, 0]), 10, 5).shape == (5, 0, 2)

    found = diversity(torch.tensor([[0.2, 0.4], [0.5, 0.5], [0.2, 0.2]]))
    assert found.mean == pytest.approx(1 / 3)
    assert found.deviation == pytest.approx(np.std([0.3, 0.5, 0.2], ddof=1))
    running = [0.3, 0.4, 1 / 3]
    assert found.table2 == pytest.approx(0.35)
    assert found.table2_range == pytest.approx((max(running) - min(running)) / 2)


# ------------------------------------------------------------------------------------------------------------
# People without their background


def test_a_person_who_is_not_seen_has_no_figures():
    pixels = noise(2, 24, 12)
    silhouette = torch.zeros(2, 24, 12)
    silhouette[1, 4:20, 2:10] = 1
    scores = person_fidelity(pixels, pixels.flip(0), silhouette)
    assert scores.l1.isnan().tolist() == [True, False]
    assert scores.upper_colour.isnan().tolist() == [True, False]
    by_hand = (pixels[1].double() - pixels[0]).abs()[:, 4:20, 2:10].mean() / 255
    assert float(scores.l1[1]) == pytest.approx(float(by_hand))
    assert person_figures(scores, scores)["person_L1"] == pytest.approx(float(by_hand))


def test_the_rank_of_an_identity():
    gallery = F.normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.7, 0.7], [0.7, 0.7]]))
    ids = torch.tensor([5, 5, 8, 3, 3])
    queries = F.normalize(torch.tensor([[1.0, 0.05], [1.0, 0.05], [1.0, 0.05], [1.0, 0.05], [1.0, 1]]))
    wanted = torch.tensor([5, 3, 8, 4, 3])
    assert identity_ranks(queries, gallery, ids, wanted).tolist() == [1, 2, 3, 0, 1]
    left_out = torch.tensor([[0, 1], [0, 1], [2, -1], [-1, -1], [3, -1]])
    assert identity_ranks(queries, gallery, ids, wanted, left_out).tolist() == [0, 1, 0, 0, 1]
