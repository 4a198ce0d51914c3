"""How close generated pictures are to the true ones: L1, PSNR, SSIM."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH_SIZE = 64
"""Pictures that are compared at once, unless told otherwise."""
IDENTICAL_PSNR = 100.0
"""PSNR in dB of identical pictures; one wrong value in a picture of 256 x 128 gives 98."""

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


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
    check_pictures(generated, true)
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
    return ssim_map(x, y).mean((1, 2, 3))


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """(N, C, H - 10, W - 10): `ssim` at each place where the window lies inside the picture; its errors."""
    H, W = x.shape[2:]
    if min(H, W) < _WINDOW:
        raise ValueError(f"pictures of {H} x {W}: SSIM's window needs {_WINDOW} x {_WINDOW} or more")
    mean_x, mean_y, square_x, square_y, product = (_blurred(moment) for moment in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    contrast_and_structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return luminance * contrast_and_structure


# ------------------------------------------------------------------------------------------------------------
# What the above is made of


def check_pictures(generated: Tensor, true: Tensor) -> None:
    """Raises ValueError unless both are pictures (N, 3, H, W), uint8, of one shape."""
    for name, pixels in (("generated", generated), ("true", true)):
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            found = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
            raise ValueError(f"{name} is {found}: uint8 (N, 3, H, W) is needed, see augment.denormalise")
    if generated.shape != true.shape:
        raise ValueError(f"generated is {tuple(generated.shape)}, true is {tuple(true.shape)}: resize one of them")


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
