"""Distances between sets of pictures, the FID network, diversity, and people without their background."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import inception

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
from dgnet_core.generation.fidelity import swap_fidelity
from dgnet_core.generation.inception import (
    InceptionFID,
    inception_input,
    read_inception,
    tensorflow_resize,
)
from dgnet_core.generation.people import identity_ranks, person_fidelity, person_figures
from dgnet_platform.data.people.people import People, Shot

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


def test_kernel_distance_is_the_plain_definition():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(60, 5, generator=generator), torch.rand(44, 5, generator=generator) + 0.2
    found = kernel_distance(first, second, subsets=4, seed=3)
    assert found.subset_size == 22

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / 5 + 1) ** 3

    rng = np.random.default_rng(3)
    plain = []
    for _ in range(4):
        x, y = (values.double().numpy()[rng.choice(len(values), 22, replace=False)] for values in (first, second))
        within = sum(kernel(one[i], one[j]) for one in (x, y) for i in range(22) for j in range(22) if i != j)
        across = sum(kernel(a, b) for a in x for b in y)
        plain.append(within / (22 * 21) - 2 * across / 22**2)
    assert found.mean == pytest.approx(np.mean(plain), rel=1e-5)
    assert found.deviation == pytest.approx(np.std(plain), rel=1e-4)
    same = kernel_distance(torch.rand(900, 5, generator=generator), torch.rand(900, 5, generator=generator))
    assert abs(same.mean) < 3 * same.deviation < 0.05 * found.mean


# ------------------------------------------------------------------------------------------------------------
# The FID network


class Reference(inception.Inception3):
    """torchvision's network with the three changes, made in torchvision's own code by exchanging its pools."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__(num_classes=1008, aux_logits=False, init_weights=False)
        plain = F.avg_pool2d
        monkeypatch.setattr(inception.F, "avg_pool2d", lambda x, **how: plain(x, count_include_pad=False, **how))
        self.Mixed_7c.register_forward_pre_hook(lambda *_: monkeypatch.setattr(inception.F, "avg_pool2d", F.max_pool2d))
        self.fc = nn.Identity()


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


def test_the_network_is_torchvisions_with_three_changes(weights: Path, monkeypatch: pytest.MonkeyPatch):
    network = read_inception(weights)
    x = inception_input(noise(2), "table2")
    with torch.no_grad():
        found = network(x)
        tensors = torch.load(weights, weights_only=True)
        reference = Reference(monkeypatch).eval()
        reference.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("fc.")})
        expected = reference(x)
        unchanged = inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    assert expected.shape == (2, 2048)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    monkeypatch.undo()
    unchanged.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    unchanged.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("fc.")})
    with torch.no_grad():
        assert float((found - unchanged(x)).abs().max()) > 0.01 * float(expected.abs().max())
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
    refused({"conv1.weight": torch.zeros(1)}, "of another network .* tensors are missing, such as Conv2d_1a_3x3")
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


def plain_dssim(x: np.ndarray, y: np.ndarray) -> float:
    """scikit-image's definition over Lab (3, H, W), window by window."""
    values = []
    for one, other in zip(x.astype(float), y.astype(float), strict=True):
        for top in range(one.shape[0] - 6):
            for left in range(one.shape[1] - 6):
                a, b = one[top : top + 7, left : left + 7].ravel(), other[top : top + 7, left : left + 7].ravel()
                c1, c2 = 1.0, 9.0
                covariance = np.cov(a, b)
                luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
                contrast = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
                values.append(luminance * contrast)
    return (1 - float(np.mean(values))) / 2


def test_dssim_is_the_plain_definition():
    people = People(0, height=32, width=16)
    pixels = torch.from_numpy(np.stack([people.picture(1, camera, 0) for camera in (1, 2, 3)])).permute(0, 3, 1, 2)
    pairs = torch.tensor([[0, 1], [2, 1], [1, 1]])
    colours = lab(pixels).numpy()
    found = dssim(pixels, pairs)
    for value, (i, j) in zip(found.tolist(), pairs.tolist(), strict=True):
        assert value == pytest.approx(plain_dssim(colours[i], colours[j]), abs=1e-6)
    assert found[2] == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="pictures of 6 x 16"):
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


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    """True swaps, their silhouettes, and the structures' pictures as they are."""
    people = People(0)
    pairs = [(Shot(4 * k + 3, 1, 0), Shot(4 * k + 8, 2, 1)) for k in range(6)]

    def stacked(pictures: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(pictures))

    return {
        "true": stacked([people.draw(appearance_of=i, structure_of=j) for i, j in pairs]).permute(0, 3, 1, 2),
        "unchanged": stacked([people.draw(appearance_of=j, structure_of=j) for _, j in pairs]).permute(0, 3, 1, 2),
        "silhouette": stacked([people.silhouette(appearance_of=i, structure_of=j) for i, j in pairs]),
    }


def test_each_damage_moves_the_figures_that_it_should(drawn: dict[str, Tensor]):
    true, silhouette = drawn["true"], drawn["silhouette"]
    generator = torch.Generator().manual_seed(0)
    inside = silhouette[:, None] > 0
    blurred = F.avg_pool2d(F.pad(true.float(), (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    damaged = {
        "none": true,
        "blur": blurred.round().to(torch.uint8),
        "noise": (true + 12 * torch.randn(true.shape, generator=generator)).round().clamp(0, 255).to(torch.uint8),
        "channels": true[:, [2, 0, 1]],
        "gray": true.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1),
        "background": torch.where(inside, true, true.flip(0)),
    }
    unchanged = person_fidelity(drawn["unchanged"], true, silhouette)
    figures = {
        name: person_figures(person_fidelity(pictures, true, silhouette), unchanged)
        for name, pictures in damaged.items()
    }
    colour = {name: (row["upper_colour"] + row["lower_colour"]) / 2 for name, row in figures.items()}
    assert figures["none"] == {
        "person_L1": 0, "person_PSNR": 100, "person_SSIM": pytest.approx(1), "upper_colour": 0, "lower_colour": 0,
        "transfer": 1, "sharpness": 1, "background_L1": 0,
    }  # fmt: skip
    # Blur takes edges and little colour; noise adds gradients and takes none; both keep the clothes' mean colours.
    assert figures["blur"]["sharpness"] < 0.5 < 1.1 < figures["noise"]["sharpness"]
    assert figures["blur"]["person_SSIM"] < 0.9
    assert figures["noise"]["person_SSIM"] < 0.9
    assert max(colour["blur"], colour["noise"]) < 4 < 8 < min(colour["channels"], colour["gray"])
    # Colours alone are wrong: as sharp as ever for swapped channels.
    assert figures["channels"]["sharpness"] == pytest.approx(1, abs=1e-9)
    assert figures["channels"]["transfer"] < figures["blur"]["transfer"]
    # Another background moves what is outside, and over the whole picture everything; SSIM's windows see some of it.
    wrong = figures["background"]
    assert wrong["background_L1"] > 0.1
    assert (wrong["person_L1"], wrong["transfer"], wrong["upper_colour"], wrong["lower_colour"]) == (0, 1, 0, 0)
    assert wrong["sharpness"] == pytest.approx(1)
    whole = swap_fidelity(damaged["background"], true)
    assert float(whole.l1.mean()) > 0.05
    assert float(whole.ssim.mean()) < wrong["person_SSIM"] - 0.2


def test_doing_nothing_transfers_nothing(drawn: dict[str, Tensor]):
    true, silhouette = drawn["true"], drawn["silhouette"]
    unchanged = person_fidelity(drawn["unchanged"], true, silhouette)
    figures = person_figures(unchanged, unchanged)
    assert figures["transfer"] == 0
    assert figures["person_L1"] > 0.05
    assert figures["background_L1"] < 0.02  # but for shadows and JPEG, the background is the structure's
    half = ((drawn["unchanged"].float() + true.float()) / 2).round().to(torch.uint8)
    halfway = person_figures(person_fidelity(half, true, silhouette), unchanged)
    assert halfway["transfer"] == pytest.approx(0.5, abs=0.02)


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
