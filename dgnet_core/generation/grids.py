"""Pictures laid out in grids."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dgnet_core.learning.augment import denormalise

GAP, WIDE_GAP = 2, 6
"""White pixels between the pictures of a grid, and between real and generated ones."""


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


def swap_grid(
    draw: Callable[[Tensor, Tensor], Tensor], sources: Tensor, targets: Tensor, joints: Tensor | None = None
) -> Tensor:
    """All combinations (Figures 1 and 6): targets, whose pose is taken, in the first row, sources in the first column.

    Args:
        draw: a method's, see `methods.Draw`.
        sources: (S, 3, H, W), one for each row.
        targets: (T, 3, H, W), one for each column.
        joints: of the targets, (T, 18, 3), where `draw` takes these instead.

    Returns:
        One picture (3, H', W'), uint8, on the CPU: S + 1 by T + 1 cells, of which the corner is white.
    """
    wanted = targets if joints is None else joints
    rows = torch.arange(len(targets)).repeat(len(sources))
    cells = to_pixels(draw(sources.repeat_interleave(len(targets), dim=0), wanted[rows])).unflatten(
        0, (len(sources), len(targets))
    )
    return framed_grid(cells, to_pixels(targets), to_pixels(sources))


def interpolation_grid(fixed: Tensor, first: Tensor, between: Tensor, second: Tensor) -> Tensor:
    """Rows: a fixed picture, both ends and the steps (R, S, 3, H, W), uint8, between them."""
    ends = [to_pixels(images)[:, None] for images in (fixed, first, second)]
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


def placed(images: Tensor, network: nn.Module) -> Tensor:
    """Images on the device and in the precision of a network."""
    weight = next(network.parameters())
    return images.to(device=weight.device, dtype=weight.dtype)


def to_pixels(images: Tensor) -> Tensor:
    """Pixels (N, 3, H, W), uint8, on the CPU, of normalised images."""
    return denormalise(images).cpu()
