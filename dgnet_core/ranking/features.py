"""Features: what is known of the images of a query set or gallery, and how descriptors are formed.

The descriptor of DG-Net is [f_prim, beta * f_fine], beta = 0.5 in the paper. Images are compared by

    similarity = f_prim . f_prim' + beta * f_fine . f_fine'

which is what scaling the fine half of the query alone gives. The two halves are therefore kept apart
and beta is a weight, given when ranking.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.5
"""Weight of f_fine in `both` (paper, section 4.1)."""
JUNK = -1
"""Person id of gallery images that count neither as right nor as wrong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Descriptors of N images with their labels, all on one device."""

    prim: Tensor
    """Primary halves, float32, N x D; of unit length where similarity is to be the cosine."""

    fine: Tensor
    """Fine-grained halves, float32, N x D'; N x 0 for a model with one head."""

    person_ids: Tensor
    """int64, N; -1 marks junk."""

    camera_ids: Tensor
    """int64, N."""

    def __post_init__(self):
        for name in ("prim", "fine"):
            half = getattr(self, name)
            if half.dtype != torch.float32:
                raise ValueError(f"{name}: expected float32, got {half.dtype}; convert it with .float()")
            if half.ndim != 2:
                raise ValueError(f"{name}: expected images x values, got shape {tuple(half.shape)}; flatten it")
            if half.numel() and not torch.isfinite(torch.stack(torch.aminmax(half))).all():
                rows = (~torch.isfinite(half)).any(dim=1).nonzero()[:, 0]
                raise ValueError(
                    f"{name}: {len(rows)} rows hold NaN or infinity, the first is row {int(rows[0])}; "
                    "check the checkpoint and extract again in float32"
                )
        for name in ("person_ids", "camera_ids"):
            ids = getattr(self, name)
            if ids.dtype != torch.int64:
                raise ValueError(f"{name}: expected int64, got {ids.dtype}; convert it with .long()")
            if ids.ndim != 1:
                raise ValueError(f"{name}: expected one id per image, got shape {tuple(ids.shape)}; flatten it")
        for name in ("fine", "person_ids", "camera_ids"):
            value = getattr(self, name)
            if len(value) != len(self.prim):
                raise ValueError(
                    f"{name}: {len(value)} rows, but prim has {len(self.prim)}; give all fields for the same images"
                )
            if value.device != self.prim.device:
                raise ValueError(f"{name}: on {value.device}, but prim is on {self.prim.device}; move it with .to()")
        if not len(self.prim):
            raise ValueError("prim: 0 rows; a query or gallery needs at least one image")
        if self.person_ids.min() < JUNK:
            raise ValueError(
                f"person_ids: {int(self.person_ids.min())} is below -1; number persons from 0 and mark junk as -1"
            )

    def __len__(self) -> int:
        return len(self.prim)


def mirror_average(feature: Tensor, mirrored: Tensor) -> Tensor:
    """One half of the descriptor, from an image and its mirror image: normalised, summed, normalised again.

    Args:
        feature: bottleneck output for the images, N x D.
        mirrored: the same for the mirror images.

    Returns:
        float32, N x D, rows of unit length.

    Raises:
        ValueError: the shapes differ.
    """
    if feature.shape != mirrored.shape or feature.ndim != 2:
        raise ValueError(
            f"mirrored: shape {tuple(mirrored.shape)} does not go with feature {tuple(feature.shape)}; "
            "give both as images x values"
        )
    return F.normalize(F.normalize(feature.float()) + F.normalize(mirrored.float()))


def descriptor(prim: Tensor, fine: Tensor, beta: float = 0.5) -> Tensor:
    """[f_prim, beta * f_fine], each half normalised first: one vector an image for other tools.

    As in the similarity above, beta belongs on one side of a dot product; use 1 on the other.

    Args:
        prim: N x D.
        fine: N x D'.
        beta: weight of the fine half, finite.

    Returns:
        float32, N x (D + D').

    Raises:
        ValueError: the numbers of rows differ, or beta is not a finite number from 0.
    """
    if prim.shape[0] != fine.shape[0]:
        raise ValueError(f"fine: {len(fine)} rows, but prim has {len(prim)}; give both for the same images")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta: must be finite and at least 0, got {beta}")
    return torch.cat([F.normalize(prim.float()), beta * F.normalize(fine.float())], dim=1)


@torch.no_grad()
def multi_query(query: Features, photos: Features) -> Features:
    """Queries whose descriptor is the mean over all photos of that person under that camera.

    Args:
        query: Q queries.
        photos: any number of photos for each of them (Market-1501: `gt_bbox`).

    Returns:
        Q queries with the labels of `query`.

    Raises:
        ValueError: a query has no photo, or the two are not comparable.
    """
    check_comparable(query, photos, "photos")
    person_ids = torch.cat([photos.person_ids, query.person_ids])
    camera_ids = torch.cat([photos.camera_ids, query.camera_ids])
    distinct, group = torch.stack([person_ids, camera_ids], dim=1).unique(dim=0, return_inverse=True)
    of_photo, of_query = group.split([len(photos), len(query)])
    count = torch.bincount(of_photo, minlength=len(distinct))
    missing = (count[of_query] == 0).nonzero()[:, 0]
    if len(missing):
        row = int(missing[0])
        raise ValueError(
            f"photos: none of person {int(query.person_ids[row])} under camera {int(query.camera_ids[row])}, "
            f"which query {row} needs ({len(missing)} such queries); add the query images to the photos"
        )

    def mean(half: Tensor) -> Tensor:
        total = half.new_zeros(len(distinct), half.shape[1]).index_add_(0, of_photo, half)
        return (total / count.clamp(min=1)[:, None])[of_query]

    return Features(
        prim=mean(photos.prim),
        fine=mean(photos.fine),
        person_ids=query.person_ids,
        camera_ids=query.camera_ids,
    )


def check_comparable(query: Features, other: Features, name: str) -> None:
    """Raises ValueError unless the halves have equal widths and both are on one device."""
    for half in ("prim", "fine"):
        widths = getattr(query, half).shape[1], getattr(other, half).shape[1]
        if widths[0] != widths[1]:
            raise ValueError(
                f"{name}.{half}: {widths[1]} values an image, but the query's has {widths[0]}; "
                "extract both with the same model"
            )
    if query.prim.device != other.prim.device:
        raise ValueError(f"{name}: on {other.prim.device}, but the query is on {query.prim.device}; move one of them")
