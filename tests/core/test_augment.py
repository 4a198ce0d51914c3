"""From pictures to a training batch: every draw's effect by hand, resizing as Pillow does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_core.learning import augment
from dgnet_core.learning.augment import (
    ATTEMPTS,
    STD,
    crop_and_resize,
    denormalise,
    erase,
    flip_and_crop,
    normalise,
    training_batch,
)
from dgnet_core.learning.batches import Position
from dgnet_core.learning.config import AugmentConfig, StepConfig
from tests.helpers.tiny import tiny_config


def test_normalise_and_back() -> None:
    pixels = torch.randint(256, (2, 3, 8, 4), dtype=torch.uint8)
    assert torch.equal(denormalise(normalise(pixels, 8, 4)), pixels)
    x = normalise(torch.full((1, 3, 8, 4), 128, dtype=torch.uint8), 16, 8)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(x[0, :, 3, 3], expected)


@pytest.mark.parametrize("factor", [2, 1 / 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_resizes_as_pillow_does(factor: float, axis: int) -> None:
    # Black and white stripes: bicubic filters overshoot. Pillow also rounds between its two passes, so one has no work.
    size = (round(24 / factor), round(12 / factor))
    lines = torch.randint(2, (size[axis],), generator=torch.Generator().manual_seed(0))
    picture = (255 * lines).to(torch.uint8).view((-1, 1) if axis == 0 else (1, -1)).expand(size)
    resized = Image.fromarray(picture.numpy()).resize((12, 24), Image.Resampling.BICUBIC)
    expected = normalise(torch.tensor(np.array(resized)).expand(1, 3, -1, -1), 24, 12)
    one_level = 1.01 / 255 / min(STD)
    assert (normalise(picture.expand(1, 3, -1, -1), 24, 12) - expected).abs().max() < one_level


def test_flip_and_crop_as_padding_would() -> None:
    x = torch.arange(2 * 1 * 5 * 4, dtype=torch.float32).view(2, 1, 5, 4)
    pad = 2
    padded = torch.nn.functional.pad(x, (pad,) * 4, mode="replicate")
    draws = torch.tensor([[0.9, 0.0, 0.99], [0.1, 0.5, 0.2]])  # no flip, top 0, left 4; flip, top 2, left 1
    out = flip_and_crop(x, draws, flip=0.5, pad=pad)
    assert torch.equal(out[0], padded[0, :, 0:5, 4:8])
    flipped = torch.nn.functional.pad(x.flip(3), (pad,) * 4, mode="replicate")
    assert torch.equal(out[1], flipped[1, :, 2:7, 1:5])


def test_erasing_keeps_to_its_limits() -> None:
    x = torch.ones(2000, 1, 32, 16)
    draws = torch.rand(2000, 41, generator=torch.Generator().manual_seed(0))
    out = erase(x, draws, (0.02, 0.4), (0.3, 3.3), 0.5)
    share = 1 - out.mean(dim=(1, 2, 3))
    erased = share > 0
    assert abs(float(erased.float().mean()) - 0.5) < 0.05
    assert share[erased].min() > 0.01
    assert share.max() < 0.45
    rows, columns = (out == 0).any(3).sum(2), (out == 0).any(2).sum(2)  # a rectangle, not scattered pixels
    assert torch.equal((rows * columns).flatten(), (out == 0).sum((1, 2, 3)))
    aspect = (rows / columns).flatten()[erased & (share > 0.1)]
    assert aspect.min() > 0.2
    assert aspect.max() < 4.2


@pytest.mark.parametrize(
    ("draws", "rows", "columns"),
    [
        ([0.0, 0.0, 0.0, 0.0, 0.0], range(3), range(6)),  # 20 pixels, half as high as wide: sqrt(10) by sqrt(40)
        ([0.4, 0.5, 0.5, 0.5, 0.999], range(7, 14), range(4, 10)),  # 40 pixels, ratio 1.25: sqrt(50) by sqrt(32)
        ([0.4, 0.999, 0.999, 0.999, 0.5], range(9, 20), range(3, 8)),  # 60 pixels, ratio 2: sqrt(120) by sqrt(30)
        ([0.5, 0.5, 0.5, 0.5, 0.5], range(0), range(0)),  # not chosen
    ],
)
def test_erased_rectangle_by_hand(draws: list[float], rows: range, columns: range) -> None:
    expected = torch.ones(3, 20, 10)
    expected[:, rows.start : rows.stop, columns.start : columns.stop] = 0
    out = erase(torch.ones(1, 3, 20, 10), torch.tensor([draws]), share=(0.1, 0.3), aspect=(0.5, 2), p=0.5)
    assert torch.equal(out[0], expected)


def test_first_rectangle_inside_the_image_is_erased() -> None:
    places = [0.9, 0.0, 0.9, 0.9, 0.5, 0.9]  # tops, then lefts
    draws = torch.tensor([
        [0.0, 0.99, 0.0, 0.25, 0.0, 1 / 3, 1 / 3, *places],  # 9 by 19, 4 by 4, 8 by 8
        [0.0, 0.99, 0.99, 0.99, 0.0, 0.0, 0.0, *places],  # 9 by 19, three times
    ])  # fmt: skip
    out = erase(torch.ones(2, 1, 20, 10), draws, share=(0.1, 0.9), aspect=(0.5, 2), p=1)
    expected = torch.ones(2, 1, 20, 10)
    expected[0, :, :4, 3:7] = 0
    assert torch.equal(out, expected)


@pytest.mark.parametrize("aspect", [4.0, 1.0])  # 20 by 5 and 10 by 10
def test_no_rectangle_spans_the_image(aspect: float) -> None:
    x = torch.ones(1, 1, 20, 10)
    assert torch.equal(erase(x, torch.zeros(1, 5), share=(0.5, 0.5), aspect=(aspect, aspect), p=1), x)


@pytest.mark.parametrize("size", [(128, 64), (48, 24)])
def test_crops_keep_to_their_limits(size: tuple[int, int]) -> None:
    H, W = size
    places = torch.stack(torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij"))
    draws = torch.rand(2000, 4 * ATTEMPTS, generator=torch.Generator().manual_seed(0))
    seen = crop_and_resize(places.expand(2000, -1, -1, -1), draws, (0.64, 1.0), (2.0, 3.0))
    middle = seen[:, :, 1:-1, 1:-1]  # what lies outside the picture is its edge
    height = (middle[:, 0, -1, 0] - middle[:, 0, 0, 0]) * H / (H - 3)
    width = (middle[:, 1, 0, -1] - middle[:, 1, 0, 0]) * W / (W - 3)
    whole = (seen - places).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert float(whole.float().mean()) < 0.02  # in ten attempts, nearly always one fits
    share, aspect = (height * width / (H * W))[~whole], (height / width)[~whole]
    slack = 1.5 / W  # both sides are whole pixels
    assert 0.64 - slack < share.min() < 0.66
    assert 0.9 < share.max() < 1
    assert 2 - 3 * slack < aspect.min() < 2.02
    assert 2.9 < aspect.max() < 3 + 3 * slack
    top = middle[~whole, 0, 0, 0]
    assert top.min() < 2
    assert top.max() > 0.1 * H  # anywhere in the picture


def test_cropped_picture_by_hand() -> None:
    x = torch.arange(8 * 4, dtype=torch.float64).view(1, 1, 8, 4)
    half = torch.tensor([[0.0, 0.0, 0.5, 0.99]])  # a quarter of the area, as wide as high: 3 by 3 from row 3, column 1
    out = crop_and_resize(x, half, (0.25, 0.25), (1.0, 1.0))[0, 0]
    rows = 3 + (torch.arange(8).double() + 0.5) * 3 / 8 - 0.5
    columns = 1 + (torch.arange(4).double() + 0.5) * 3 / 4 - 0.5
    expected = 4 * rows[:, None] + columns.clamp(max=3)
    torch.testing.assert_close(out, expected)
    none = crop_and_resize(x, half, (1.0, 1.0), (1.0, 1.0))  # 6 by 6 is wider than the picture
    torch.testing.assert_close(none, x)


def test_flips_crops_and_erasing_share_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for function in (flip_and_crop, erase):

        def keep(x, draws, *settings, function=function):
            seen.append(draws)
            return function(x, draws, *settings)

        monkeypatch.setattr(augment, function.__name__, keep)
    config = tiny_config(step=StepConfig())
    pixels = torch.zeros(4, 4, 3, 24, 12, dtype=torch.uint8)
    training_batch(pixels, torch.zeros(2, 4, dtype=torch.int64), Position(seed=0, iteration=0), config)
    assert [draws.shape for draws in seen] == [(16, 3), (16, 4 * ATTEMPTS + 1)]
    assert torch.cat([draws.flatten() for draws in seen]).unique().numel() == 16 * (4 + 4 * ATTEMPTS)


def test_training_batch_is_the_same_however_many_ranks_share_it() -> None:
    config = tiny_config(step=StepConfig(), augment=AugmentConfig(pad=2))
    pixels = torch.randint(256, (4, 4, 3, 40, 20), dtype=torch.uint8)
    labels = torch.zeros(2, 4, dtype=torch.int64)
    whole = training_batch(pixels, labels, Position(seed=0, iteration=3), config)
    for part in (slice(0, 2), slice(2, 4), slice(1, 4)):
        position = Position(seed=0, iteration=3, first=part.start, total=4)
        half = training_batch(pixels[:, part], labels[:, part], position, config)
        assert torch.equal(half.images, whole.images[:, part])
        assert half.erased is not None
        assert whole.erased is not None
        assert torch.equal(half.erased, whole.erased[:, part])
    assert whole.images.shape == (4, 4, 3, 24, 12)
    config = replace(config, augment=AugmentConfig(flip=0, pad=0, erase=0))
    plain = training_batch(pixels, labels, Position(seed=0, iteration=3), config)
    assert plain.erased is None
    assert torch.equal(plain.images.flatten(0, 1), normalise(pixels.flatten(0, 1), 24, 12))


def test_training_batch_wants_pixels() -> None:
    config = tiny_config()
    position = Position(seed=0, iteration=0)
    with pytest.raises(ValueError, match=r"uint8 of shape \(S, B, 3, h, w\)"):
        training_batch(torch.zeros(4, 2, 3, 8, 8), torch.zeros(2, 2), position, config)
