"""Pictures that a trained DG-Net draws: codes, swaps, interpolations."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dgnet_core.dgnet.networks import AppearanceEncoder, Decoder, StructureEncoder, to_gray
from dgnet_core.generation.grids import interpolation_grid, placed, to_pixels
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.extraction import BATCH_SIZE


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
        return torch.cat([encoder(placed(batch, encoder)) for batch in images.split(batch_size)])


def structure_codes(networks: Generator, images: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """E_s(gray(x)): structure codes (N, C_s, H / 4, W / 4) of images, on the networks' device."""
    encoder = networks.structure_encoder
    with evaluating(encoder):
        return torch.cat([encoder(to_gray(placed(batch, encoder))) for batch in images.split(batch_size)])


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


def drawing(networks: Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """What draws the appearance of one image in the structure of another, for pairs; see `render`."""
    return partial(render, networks)


def draw(networks: Generator, structure: Tensor, appearance: Tensor) -> Tensor:
    """G of codes, as `structure_codes` and `appearance_codes` give them, as pixels (N, 3, H, W), uint8, on the CPU."""
    with evaluating(networks.decoder):
        return to_pixels(networks.decoder(structure, appearance))


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
    return interpolation_grid(structure_images, first, torch.stack(rows), second)


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
    return interpolation_grid(appearance_images, first, torch.stack(rows), second)


def _between(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Codes from `first` (R, ...) to `second` in `steps` equal parts, (R, steps, ...)."""
    if steps < 2:
        raise ValueError(f"steps: must be at least 2 (both ends), got {steps}")
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype)
    share = share.view(1, steps, *[1] * (first.ndim - 1))
    return torch.lerp(first[:, None], second[:, None], share)
