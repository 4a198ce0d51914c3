"""Generation and extraction: grids, interpolations, swap fidelity, features of networks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.dgnet.generator import (
    appearance_codes,
    drawing,
    interpolate_appearance,
    interpolate_structure,
    render,
    structure_codes,
)
from dgnet_core.dgnet.networks import pool_code, to_gray
from dgnet_core.dgnet.state import TrainState
from dgnet_core.generation.fidelity import ssim, swap_fidelity
from dgnet_core.generation.grids import GAP, WIDE_GAP, swap_grid
from dgnet_core.learning.augment import denormalise, normalise
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.extraction import extract
from dgnet_core.teacher.networks import Teacher
from tests.helpers.tiny import small_config

CONFIG = small_config(4)
H, W = CONFIG.network.height, CONFIG.network.width

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def state() -> TrainState:
    state = TrainState.build(CONFIG)
    for module in state.appearance_encoder.modules():  # running statistics that differ from any batch's
        for name, buffer in module.named_buffers(recurse=False):
            if name.startswith("running_"):
                buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(buffer))) + 0.5)
    return state


def pixels(count: int, seed: int = 0, height: int = H, width: int = W) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def images(count: int, seed: int = 0) -> Tensor:
    return normalise(pixels(count, seed), H, W)


def modes(state: TrainState) -> list[bool]:
    return [module.training for network in state.networks.values() for module in network.modules()]


# ------------------------------------------------------------------------------------------------------------
# Rendering


def test_render_is_the_decoder_of_both_codes_in_eval_mode(state: TrainState):
    appearance, structure = images(5, 1), images(5, 2)
    state.appearance_encoder.train()
    state.appearance_encoder.prim.eval()  # a mixture of modes must survive
    before = modes(state)
    rendered = render(state, appearance, structure, batch_size=2)
    assert modes(state) == before
    assert not rendered.requires_grad
    with evaluating(*state.networks.values()):
        codes = state.structure_encoder(to_gray(structure)), state.appearance_encoder(appearance)
        torch.testing.assert_close(rendered, state.decoder(*codes))
    state.appearance_encoder.train()


def fail(*_: object) -> None:
    raise RuntimeError("on purpose")


def test_modes_are_restored_after_an_error(state: TrainState):
    before = modes(state)
    assert any(before)
    hook = state.decoder.refine.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        render(state, images(1), images(1))
    hook.remove()
    assert modes(state) == before


def test_render_needs_pairs(state: TrainState):
    with pytest.raises(ValueError, match="appearance_images: 2, but structure_images: 3"):
        render(state, images(2), images(3))


def cell(grid: Tensor, row: int, column: int, wide_rows: tuple[int, ...], wide_columns: tuple[int, ...]) -> Tensor:
    top = row * (H + GAP) + (WIDE_GAP - GAP) * sum(row >= wide for wide in wide_rows)
    left = column * (W + GAP) + (WIDE_GAP - GAP) * sum(column >= wide for wide in wide_columns)
    return grid[:, top : top + H, left : left + W]


def test_swap_grid_has_structures_above_and_appearances_beside(state: TrainState):
    appearance, structure = images(2, 1), images(3, 2)
    grid = swap_grid(drawing(state), appearance, structure)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 3 * H + GAP + WIDE_GAP, 4 * W + 2 * GAP + WIDE_GAP)
    at = {"wide_rows": (1,), "wide_columns": (1,)}
    assert (cell(grid, 0, 0, **at) == 255).all()
    for s in range(3):
        assert torch.equal(cell(grid, 0, 1 + s, **at), denormalise(structure[s]))
    for a in range(2):
        assert torch.equal(cell(grid, 1 + a, 0, **at), denormalise(appearance[a]))
        for s in range(3):
            expected = denormalise(render(state, appearance[a : a + 1], structure[s : s + 1]))[0]
            difference = cell(grid, 1 + a, 1 + s, **at).int() - expected.int()
            assert difference.abs().max() <= 1  # of rounding, since batches differ


def test_interpolations_start_and_end_at_the_swaps(state: TrainState):
    first, second, fixed = images(2, 1), images(2, 2), images(2, 3)
    steps = 4
    at = {"wide_rows": (), "wide_columns": (1, 2, steps + 2)}
    by_appearance = interpolate_appearance(state, first, second, fixed, steps=steps)
    by_structure = interpolate_structure(state, first, second, fixed, steps=steps)
    for grid, swaps in (
        (by_appearance, (render(state, first, fixed), render(state, second, fixed))),
        (by_structure, (render(state, fixed, first), render(state, fixed, second))),
    ):
        assert grid.shape == (3, 2 * H + GAP, 7 * W + 3 * GAP + 3 * WIDE_GAP)
        for row in range(2):
            reals = [cell(grid, row, column, **at) for column in (0, 1, steps + 2)]
            for real, expected in zip(reals, (fixed, first, second), strict=True):
                assert torch.equal(real, denormalise(expected[row]))
            for column, expected in zip((2, steps + 1), swaps, strict=True):
                difference = cell(grid, row, column, **at).int() - denormalise(expected[row]).int()
                assert difference.abs().max() <= 1
    middle = torch.lerp(appearance_codes(state, first), appearance_codes(state, second), 1 / 3)
    with evaluating(state.decoder):
        expected = denormalise(state.decoder(structure_codes(state, fixed), middle))
    assert (cell(by_appearance, 0, 3, **at).int() - expected[0].int()).abs().max() <= 1
    with pytest.raises(ValueError, match="steps: must be at least 2"):
        interpolate_appearance(state, first, second, fixed, steps=1)


# ------------------------------------------------------------------------------------------------------------
# Swap fidelity


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two (C, H, W) pictures by its definition, window by window, in float64."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel_x, channel_y in zip(x.astype(float), y.astype(float), strict=True):
        for top in range(x.shape[1] - 10):
            for left in range(x.shape[2] - 10):
                a, b = (z[top : top + 11, left : left + 11] for z in (channel_x, channel_y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + c1)
                    * (2 * covariance + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
    return float(np.mean(values))


def test_fidelity_is_that_of_slow_definitions():
    true = F.interpolate(pixels(3, 4, 4, 3).float(), (21, 17), mode="bicubic").clamp(0, 255).byte()
    noise = torch.randint(-30, 31, true.shape, generator=torch.Generator().manual_seed(5))
    generated = (true.int() + noise).clamp(0, 255).byte()
    found = swap_fidelity(generated, true, batch_size=2)
    for n in range(3):
        x, y = generated[n].numpy().astype(float), true[n].numpy().astype(float)
        assert float(found.l1[n]) == pytest.approx(np.abs(x - y).mean() / 255, rel=1e-5)
        assert float(found.psnr[n]) == pytest.approx(10 * math.log10(255**2 / ((x - y) ** 2).mean()), rel=1e-5)
        assert float(found.ssim[n]) == pytest.approx(slow_ssim(x, y), abs=1e-4)


def test_identical_and_opposite_pictures():
    same = pixels(2)
    found = swap_fidelity(same, same)
    assert found.l1.tolist() == [0, 0]
    assert found.psnr.tolist() == [100, 100]
    torch.testing.assert_close(found.ssim, torch.ones(2))
    black, white = (
        torch.zeros(1, 3, H, W, dtype=torch.uint8),
        torch.full((1, 3, H, W), 255, dtype=torch.uint8),
    )
    found = swap_fidelity(black, white)
    assert found.l1.tolist() == [1]
    assert found.psnr.tolist() == [0]
    assert float(found.ssim) == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-3)


def test_ssim_of_constant_pictures_by_hand():
    x, y = torch.full((1, 1, 11, 11), 100.0), torch.full((1, 1, 11, 11), 120.0)
    c1 = (0.01 * 255) ** 2
    assert float(ssim(x, y)) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-4)


@pytest.mark.parametrize(
    ("generated", "true", "message"),
    [
        (pixels(1).float(), pixels(1), "generated is torch.float32"),
        (pixels(1), pixels(2), "resize one of them"),
        (pixels(1, height=10), pixels(1, height=10), "11 x 11 or more"),
    ],
)
def test_fidelity_refuses(generated: Tensor, true: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        swap_fidelity(generated, true)


# ------------------------------------------------------------------------------------------------------------
# Features


def test_features_are_bottleneck_outputs_of_picture_and_mirror_image(state: TrainState):
    people, cameras = torch.tensor([4, 4, 9, 0, -1]), torch.tensor([1, 2, 1, 1, 3])
    done: list[tuple[int, int]] = []
    before = modes(state)
    features = extract(
        state.appearance_encoder,
        pixels(5, height=48, width=20),
        people,
        cameras,
        height=H,
        width=W,
        batch_size=2,
        progress=lambda *at: done.append(at),
    )
    assert modes(state) == before
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert torch.equal(features.person_ids, people)
    assert torch.equal(features.camera_ids, cameras)
    x = normalise(pixels(5, height=48, width=20), H, W)
    with evaluating(state.appearance_encoder):
        for name, found in (("prim", features.prim), ("fine", features.fine)):
            head = state.appearance_encoder.get_submodule(name)
            one, other = (head(pool_code(state.appearance_encoder(view))) for view in (x, x.flip(3)))
            torch.testing.assert_close(found, F.normalize(F.normalize(one) + F.normalize(other)))


def test_a_teacher_has_one_feature_and_mirrors_count_alike():
    teacher = Teacher(CONFIG.network, 3).train()
    x = pixels(3)
    of = {
        "person_ids": torch.arange(3),
        "camera_ids": torch.ones(3, dtype=torch.int64),
        "height": H,
        "width": W,
    }
    features = extract(teacher, x, **of)
    assert features.prim.shape == (3, CONFIG.network.bottleneck)
    assert features.fine.shape == (3, 0)
    assert teacher.training
    torch.testing.assert_close(extract(teacher, x.flip(3), **of).prim, features.prim)
    rough = extract(teacher, x, **of, precision="bfloat16")
    assert rough.prim.dtype == torch.float32
    torch.testing.assert_close(rough.prim, features.prim, atol=0.05, rtol=0)


def test_double_precision_networks_give_float32_features(state: TrainState):
    config = replace(CONFIG, step=replace(CONFIG.step, precision="float64"))
    double = TrainState.build(config)
    of = {"person_ids": torch.arange(2), "camera_ids": torch.arange(2), "height": H, "width": W}
    assert extract(double.appearance_encoder, pixels(2), **of).prim.dtype == torch.float32
    assert render(double, images(2), images(2)).dtype == torch.float32


def test_extraction_refuses(state: TrainState):
    ids = torch.arange(2)
    with pytest.raises(ValueError, match="uint8"):
        extract(state.appearance_encoder, images(2), ids, ids, height=H, width=W)
    broken = TrainState.build(CONFIG)
    broken.appearance_encoder.prim.norm.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        extract(broken.appearance_encoder, pixels(2), ids, ids, height=H, width=W)
