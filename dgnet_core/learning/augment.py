"""From uint8 pictures to a training batch: resize, flip, crop, normalise and erase, batched on the pictures' device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.poses import mirrored
from dgnet_core.learning.precision import dtype_of

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of pixel values in [0, 1], as all re-id baselines use them."""

ATTEMPTS = 10
"""Rectangles drawn per image until one fits inside it."""


def normalise(pixels: Tensor, height: int, width: int) -> Tensor:
    """Images (N, 3, height, width), float32 and normalised, of pixels (N, 3, h, w), uint8; bicubic resize if needed."""
    x = resized(pixels, height, width)
    mean, std = (constant.mul_(255).to(x.device, non_blocking=True) for constant in _statistics())
    return (x - mean) / std


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Whole values (N, 3, height, width) from 0 to 255, float32, of pixels (N, 3, h, w), uint8; bicubic if needed."""
    x = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # the same bits from pixels of any layout
    if pixels.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True).round_().clamp_(0, 255)


def denormalise(images: Tensor) -> Tensor:
    """Pixels (N, 3, H, W), uint8, of normalised images (N, 3, H, W)."""
    mean, std = (constant.to(images.device, non_blocking=True) for constant in _statistics())
    return (images.float() * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def to_symmetric(images: Tensor) -> Tensor:
    """Images in [-1, 1], as the compared generators see them, of normalised images (..., 3, H, W)."""
    mean, std = (constant.to(images.device, images.dtype, non_blocking=True) for constant in _statistics())
    return 2 * (images * std + mean) - 1


def from_symmetric(images: Tensor) -> Tensor:
    """Normalised images of images (..., 3, H, W) in [-1, 1]."""
    mean, std = (constant.to(images.device, images.dtype, non_blocking=True) for constant in _statistics())
    return ((images + 1) / 2 - mean) / std


def _statistics() -> tuple[Tensor, Tensor]:
    """Mean and deviation (3, 1, 1), made on the CPU: a tensor made on a GPU from numbers waits for it."""
    return torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]


def flip_and_crop(x: Tensor, draws: Tensor, flip: float, pad: int) -> Tensor:
    """Mirror some images, then shift each by up to `pad` pixels as padding by its edge and cropping would.

    Args:
        x: (N, C, H, W).
        draws: (N, 3) in [0, 1): one for the flip, two for the crop's place.
        flip: probability of a flip.
        pad: edge padding in pixels.
    """
    H, W = x.shape[-2:]
    top, left = ((draws[:, 1:] * (2 * pad + 1)).long() - pad).unbind(1)
    rows = (torch.arange(H, device=x.device) + top[:, None]).clamp_(0, H - 1)
    columns = (torch.arange(W, device=x.device) + left[:, None]).clamp_(0, W - 1)
    columns = torch.where(draws[:, :1] < flip, W - 1 - columns, columns)
    x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, W))
    return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], H, -1))


def flip_and_shift(joints: Tensor, draws: Tensor, flip: float, pad: int, width: int) -> Tensor:
    """Joints (N, 18, 3) of images (N, C, H, width) after `flip_and_crop` with the same draws."""
    top, left = ((draws[:, 1:] * (2 * pad + 1)).long() - pad)[:, None].unbind(2)  # (N, 1) each
    joints = torch.where((draws[:, :1] < flip)[:, :, None], mirrored(joints, width), joints)
    return torch.stack([joints[..., 0] - left, joints[..., 1] - top, joints[..., 2]], dim=2)


def erase(x: Tensor, draws: Tensor, share: tuple[float, float], aspect: tuple[float, float], p: float) -> Tensor:
    """Set a random rectangle of some images to 0 (Zhong et al., Random Erasing).

    Args:
        x: (N, C, H, W), normalised, so that 0 is the mean colour.
        draws: (N, 4 * attempts + 1) in [0, 1).
        share: erased part of the image, from and to.
        aspect: height to width of the rectangle, from and to.
        p: probability that an image is erased at all.
    """
    H, W = x.shape[-2:]
    top, left, height, width, fits = _rectangles(draws[:, 1:], share, aspect, (H, W))
    row, column = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    inside_rows = (row >= top) & (row < top + height)
    inside_columns = (column >= left) & (column < left + width)
    chosen = (draws[:, :1] < p) & fits
    return x.masked_fill((inside_rows & chosen)[:, None, :, None] & inside_columns[:, None, None, :], 0)


def crop_and_resize(x: Tensor, draws: Tensor, share: tuple[float, float], aspect: tuple[float, float]) -> Tensor:
    """Show a random part of each image, in the image's size by bilinear interpolation (Szegedy et al., CVPR 2015).

    Args:
        x: (N, C, H, W).
        draws: (N, 4 * attempts) in [0, 1).
        share: of the image that is shown, from and to; where no part of this share and aspect fits, all of it is.
        aspect: height to width of the part, from and to.
    """
    H, W = x.shape[-2:]
    top, left, height, width, fits = (values[:, 0] for values in _rectangles(draws, share, aspect, (H, W)))
    zero = torch.zeros_like(top)
    rows = [width / W, zero, (2 * left + width) / W - 1], [zero, height / H, (2 * top + height) / H - 1]
    part = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    part = torch.where(fits[:, None, None], part, torch.eye(2, 3, device=x.device)).to(x.dtype)
    grid = F.affine_grid(part, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _rectangles(
    draws: Tensor, share: tuple[float, float], aspect: tuple[float, float], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width in pixels, each (N, 1), of the first rectangle that fits, and whether one does."""
    H, W = size
    areas, ratios, tops, lefts = draws.chunk(4, dim=1)
    area = (share[0] + areas * (share[1] - share[0])) * H * W
    ratio = aspect[0] + ratios * (aspect[1] - aspect[0])
    heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (heights < H) & (widths < W)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
    height, width = heights.gather(1, first), widths.gather(1, first)
    top = (tops.gather(1, first) * (H - height + 1)).floor()
    left = (lefts.gather(1, first) * (W - width + 1)).floor()
    return top, left, height, width, fits.any(dim=1, keepdim=True)


def training_batch(
    pixels: Tensor, labels: Tensor, position: Position, config: MethodConfig, joints: Tensor | None = None
) -> Batch:
    """Augment one iteration's pictures.

    Args:
        pixels: (S, B, 3, h, w), uint8: the sets that the method's row in METHODS reads; any size, any device.
        labels: (2, B) identities of a and b, or (1, B) of a where b is not read.
        position: where in the run this is; the only source of randomness.
        config: image size and augmentation.
        joints: (S, B, 18, 3), x and y in pixels of `pixels`, and visibility; for methods that are posed. They are
            mirrored and shifted with their images.

    Raises:
        ValueError: wrong shape or dtype.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[2] != 3:
        found = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
        wanted = "uint8 of shape (S, B, 3, h, w), of the sets that the method's row in METHODS reads, is needed"
        raise ValueError(f"pixels are {found}: {wanted}")
    S, B = pixels.shape[:2]
    augment = config.augment
    size = config.network.height, config.network.width
    draws = position.uniform("augment", (B, S, 4 + 4 * ATTEMPTS), pixels.device)  # images of one place in the batch
    draws = draws.transpose(0, 1).flatten(0, 1)
    images = normalise(pixels.flatten(0, 1), *size).to(dtype_of(config.step))
    if augment.flip or augment.pad:
        images = flip_and_crop(images, draws[:, :3], augment.flip, augment.pad)
    if joints is not None:
        scale = (size[1] / pixels.shape[-1], size[0] / pixels.shape[-2], 1.0)
        joints = joints.to(images).flatten(0, 1) * torch.tensor(scale).to(images, non_blocking=True)
        joints = flip_and_shift(joints, draws[:, :3], augment.flip, augment.pad, size[1]).unflatten(0, (S, B))
    erased = None
    if augment.erase:
        erased = erase(images, draws[:, 3:], augment.erase_area, augment.erase_aspect, augment.erase)
        erased = erased.unflatten(0, (S, B))
    return Batch(images=images.unflatten(0, (S, B)), erased=erased, labels=labels, position=position, joints=joints)
