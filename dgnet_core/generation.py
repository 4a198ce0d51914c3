"""Pictures that DG-Net draws: swaps, grids and interpolations, and how close a swap comes to the truth.

Images are normalised tensors (N, 3, H, W), as `augment.normalise` gives them; grids are uint8 (3, H', W').
Networks are in eval mode meanwhile, and in the mode they were in afterwards. Work is done in batches, so
that memory beyond arguments and results does not grow with the number of images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dgnet_core.appearance import AppearanceEncoder
from dgnet_core.augment import denormalise
from dgnet_core.decoder import Decoder
from dgnet_core.inference import BATCH_SIZE, evaluating
from dgnet_core.structure import StructureEncoder, to_gray

GAP, WIDE_GAP = 2, 6
"""White pixels between the pictures of a grid, and between real and generated ones."""

IDENTICAL_PSNR = 100.0
"""PSNR in dB of identical pictures; one wrong value in a picture of 256 x 128 gives 98."""

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Generator(Protocol):
    """The three networks that draw; a TrainState is one."""

    @property
    def appearance_encoder(self) -> AppearanceEncoder:
        """E_a."""
        ...

    @property
    def structure_encoder(self) -> StructureEncoder:
        """E_s."""
        ...

    @property
    def decoder(self) -> Decoder:
        """G."""
        ...


# ------------------------------------------------------------------------------------------------------------
# Codes and pictures


def appearance_codes(networks: Generator, images: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """E_a(x): appearance codes (N, C_a, 4) of images, on the networks' device."""
    encoder = networks.appearance_encoder
    with evaluating(encoder):
        return torch.cat([encoder(_placed(batch, encoder)) for batch in images.split(batch_size)])


def structure_codes(networks: Generator, images: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """E_s(gray(x)): structure codes (N, C_s, H / 4, W / 4) of images, on the networks' device."""
    encoder = networks.structure_encoder
    with evaluating(encoder):
        return torch.cat([encoder(to_gray(_placed(batch, encoder))) for batch in images.split(batch_size)])


def render(
    networks: Generator, appearance_images: Tensor, structure_images: Tensor, *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """G(a_i, s_i) for pairs of images: the appearance of the first in the structure of the second.

    Returns:
        Normalised images (N, 3, H, W), float32, on the networks' device.

    Raises:
        ValueError: the numbers of images differ.
    """
    if len(appearance_images) != len(structure_images):
        raise ValueError(
            f"appearance_images: {len(appearance_images)}, but structure_images: {len(structure_images)};"
            " give pairs, or use swap_grid for all combinations"
        )
    rendered = []
    with evaluating(networks.decoder):
        batches = zip(appearance_images.split(batch_size), structure_images.split(batch_size), strict=True)
        for appearance, structure in batches:
            codes = structure_codes(networks, structure), appearance_codes(networks, appearance)
            rendered.append(networks.decoder(*codes).float())
    return torch.cat(rendered)


def draw(networks: Generator, structure: Tensor, appearance: Tensor) -> Tensor:
    """G of codes, as `structure_codes` and `appearance_codes` give them, as pixels (N, 3, H, W), uint8, on the CPU."""
    with evaluating(networks.decoder):
        return _pixels(networks.decoder(structure, appearance))


def swap_grid(
    networks: Generator, appearance_images: Tensor, structure_images: Tensor, *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """All combinations (Figures 1 and 6): structures in the first row, appearances in the first column.

    Args:
        networks: E_a, E_s and G.
        appearance_images: (A, 3, H, W), one for each row.
        structure_images: (S, 3, H, W), one for each column.
        batch_size: images drawn at once.

    Returns:
        One picture (3, H', W'), uint8, on the CPU: A + 1 by S + 1 cells, of which the corner is white.
    """
    appearance = appearance_codes(networks, appearance_images, batch_size=batch_size)
    structure = structure_codes(networks, structure_images, batch_size=batch_size)
    rows = torch.arange(len(appearance), device=appearance.device).repeat_interleave(len(structure))
    columns = torch.arange(len(structure), device=structure.device).repeat(len(appearance))
    body = [
        draw(networks, structure[columns[batch]], appearance[rows[batch]])
        for batch in torch.arange(len(rows), device=rows.device).split(batch_size)
    ]
    cells = torch.cat(body).unflatten(0, (len(appearance), len(structure)))
    return framed_grid(cells, _pixels(structure_images), _pixels(appearance_images))


def interpolate_appearance(
    networks: Generator, first: Tensor, second: Tensor, structure_images: Tensor, *, steps: int = 8
) -> Tensor:
    """Between two appearance codes, in a fixed structure (paper, Figure 5).

    Each row: the picture that gives the structure, the first picture, `steps` generated ones from its
    appearance to the second's in equal parts, the second picture.

    Args:
        networks: E_a, E_s and G.
        first: (R, 3, H, W), one for each row.
        second: (R, 3, H, W).
        structure_images: (R, 3, H, W).
        steps: generated pictures a row, both ends included; 2 or more.

    Returns:
        One picture (3, H', W'), uint8, on the CPU.
    """
    codes = _between(appearance_codes(networks, first), appearance_codes(networks, second), steps)
    structure = structure_codes(networks, structure_images)
    rows = [draw(networks, fixed.expand(steps, -1, -1, -1), row) for fixed, row in zip(structure, codes, strict=True)]
    return _interpolation_grid(structure_images, first, torch.stack(rows), second)


def interpolate_structure(
    networks: Generator, first: Tensor, second: Tensor, appearance_images: Tensor, *, steps: int = 8
) -> Tensor:
    """Between two structure codes, in a fixed appearance (paper, Figure 9).

    Each row: the picture that gives the appearance, the first picture, `steps` generated ones from its
    structure to the second's in equal parts, the second picture. Arguments and result as in
    `interpolate_appearance`.
    """
    codes = _between(structure_codes(networks, first), structure_codes(networks, second), steps)
    appearance = appearance_codes(networks, appearance_images)
    rows = [draw(networks, row, fixed.expand(steps, -1, -1)) for fixed, row in zip(appearance, codes, strict=True)]
    return _interpolation_grid(appearance_images, first, torch.stack(rows), second)


# ------------------------------------------------------------------------------------------------------------
# Swap fidelity


@dataclass(frozen=True, kw_only=True, eq=False)
class SwapFidelity:
    """How close N generated pictures come to the true ones; float32, N."""

    l1: Tensor
    """Mean absolute difference of pixel values in [0, 1]."""
    psnr: Tensor
    """Peak signal-to-noise ratio in dB; 100 for identical pictures."""
    ssim: Tensor
    """Structural similarity, at most 1."""


def swap_fidelity(generated: Tensor, true: Tensor, *, batch_size: int = BATCH_SIZE) -> SwapFidelity:
    """Compare pictures (N, 3, H, W), uint8, with the true ones, each with its own.

    Raises:
        ValueError: not uint8, of different shapes, or smaller than SSIM's window of 11 x 11.
    """
    for name, pixels in (("generated", generated), ("true", true)):
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            found = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
            raise ValueError(f"{name} is {found}: uint8 (N, 3, H, W) is needed, see augment.denormalise")
    if generated.shape != true.shape:
        raise ValueError(f"generated is {tuple(generated.shape)}, true is {tuple(true.shape)}: resize one of them")
    parts = []
    for x, y in zip(generated.split(batch_size), true.to(generated.device).split(batch_size), strict=True):
        x, y = x.float(), y.float()
        difference = (x - y) / 255
        psnr = -10 * difference.square().mean((1, 2, 3)).log10()
        parts.append((difference.abs().mean((1, 2, 3)), psnr.clamp(max=IDENTICAL_PSNR), ssim(x, y)))
    l1, psnr, similarity = (torch.cat(part) for part in zip(*parts, strict=True))
    return SwapFidelity(l1=l1, psnr=psnr, ssim=similarity)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al., IEEE TIP 2004): Gaussian window of 11 x 11, sigma 1.5.

    Only places where the window lies inside the picture count.

    Args:
        x: (N, C, H, W), float, values from 0 to 255.
        y: the same.

    Returns:
        (N,): the mean over places and channels.

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    H, W = x.shape[2:]
    if min(H, W) < _WINDOW:
        raise ValueError(f"pictures of {H} x {W}: SSIM's window needs {_WINDOW} x {_WINDOW} or more")
    mean_x, mean_y, square_x, square_y, product = (_blurred(moment) for moment in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    contrast_and_structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * contrast_and_structure).mean((1, 2, 3))


# ------------------------------------------------------------------------------------------------------------
# What the above is made of


def _blurred(x: Tensor) -> Tensor:
    """(N, C, H - 10, W - 10): x (N, C, H, W) seen through SSIM's window.

    Sums, no convolution: a GPU's convolutions round to 10 bits, and the variance is a small difference of large means.
    """
    bell = [math.exp(-((place - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for place in range(_WINDOW)]
    for dim in (2, 3):
        length = x.shape[dim] - _WINDOW + 1
        total = torch.zeros_like(x.narrow(dim, 0, length))
        for place, weight in enumerate(bell):
            total.add_(x.narrow(dim, place, length), alpha=weight / sum(bell))
        x = total
    return x


def framed_grid(cells: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Pictures (R, C, 3, H, W) with a row (C, 3, H, W) above and a column (R, 3, H, W) beside, all uint8.

    Returns:
        One picture (3, H', W'), uint8, with a white corner and thin white gaps.
    """
    corner = torch.full_like(top[:1], 255)
    rows = [
        torch.cat([corner, top]),
        *(torch.cat([head[None], row]) for head, row in zip(left, cells, strict=True)),
    ]
    return tile(torch.stack(rows), wide_rows=(1,), wide_columns=(1,))


def _interpolation_grid(fixed: Tensor, first: Tensor, between: Tensor, second: Tensor) -> Tensor:
    ends = [_pixels(images)[:, None] for images in (fixed, first, second)]
    cells = torch.cat([ends[0], ends[1], between, ends[2]], dim=1)
    return tile(cells, wide_columns=(1, 2, cells.shape[1] - 1))


def tile(cells: Tensor, *, wide_rows: Sequence[int] = (), wide_columns: Sequence[int] = ()) -> Tensor:
    """Cells (R, C, 3, H, W), uint8, as one picture (3, H', W'); the gap before the named rows and columns is wide."""
    R, C, _, H, W = cells.shape
    tops = [r * (H + GAP) + sum(WIDE_GAP - GAP for wide in wide_rows if wide <= r) for r in range(R)]
    lefts = [c * (W + GAP) + sum(WIDE_GAP - GAP for wide in wide_columns if wide <= c) for c in range(C)]
    picture = torch.full((3, tops[-1] + H, lefts[-1] + W), 255, dtype=torch.uint8)
    for r, top in enumerate(tops):
        for c, left in enumerate(lefts):
            picture[:, top : top + H, left : left + W] = cells[r, c]
    return picture


def _placed(images: Tensor, network: nn.Module) -> Tensor:
    """Images on the device and in the precision of a network."""
    weight = next(network.parameters())
    return images.to(device=weight.device, dtype=weight.dtype)


def _pixels(images: Tensor) -> Tensor:
    return denormalise(images).cpu()


def _between(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Codes from `first` (R, ...) to `second` in `steps` equal parts, (R, steps, ...)."""
    if steps < 2:
        raise ValueError(f"steps: must be at least 2 (both ends), got {steps}")
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype)
    share = share.view(1, steps, *[1] * (first.ndim - 1))
    return torch.lerp(first[:, None], second[:, None], share)
