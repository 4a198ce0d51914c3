"""How good generated people are without their background, and whose identity they show.

Over a whole picture, most of which is background, returning the structure's picture unchanged beats every generator. So
each figure here is a mean over the person's silhouette. Shapes: N pictures, G gallery pictures, D descriptor length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dgnet_core.generation.distances import lab
from dgnet_core.generation.fidelity import IDENTICAL_PSNR, check_pictures, ssim_map

UPPER_BODY, LOWER_BODY = (0.20, 0.50), (0.55, 0.90)
"""Shares of a silhouette's height, from its top: shoulders to hips, hips to ankles of a median pedestrian."""
_LEAST = 4.0  # pixels of a silhouette, or of a part of the body, that a figure needs


@dataclass(frozen=True, kw_only=True, eq=False)
class PersonFidelity:
    """How close N generated people come to the true ones; float64 (N), NaN where nothing of the person is seen."""

    l1: Tensor
    """Mean absolute difference of pixel values in [0, 1], within the silhouette."""
    psnr: Tensor
    """Peak signal-to-noise ratio in dB, within the silhouette; 100 for identical pictures."""
    ssim: Tensor
    """Structural similarity of the windows, each weighted by the silhouette at its centre."""
    upper_colour: Tensor
    """Colour error of the upper body: distance in CIE Lab between the mean colours there."""
    lower_colour: Tensor
    """The same of the lower body."""
    energy: Tensor
    """Mean squared difference of neighbouring pixels within the silhouette, of the generated picture."""
    true_energy: Tensor
    """The same of the true picture."""
    background_l1: Tensor
    """Mean absolute difference outside the silhouette."""


def person_fidelity(generated: Tensor, true: Tensor, silhouette: Tensor) -> PersonFidelity:
    """Compare generated people with the true ones.

    Args:
        generated: (N, 3, H, W), uint8.
        true: the same.
        silhouette: (N, H, W) from 0 to 1, the share of each pixel that the person fills in the true picture.

    Raises:
        ValueError: not uint8, of different shapes, or smaller than SSIM's window of 11 x 11.
    """
    check_pictures(generated, true)
    x, y, weight = generated.double(), true.double(), silhouette.double()
    difference = (x - y) / 255
    absolute, squared = difference.abs().mean(1), difference.square().mean(1)
    similarity = ssim_map(x, y).mean(1)
    edge_h, edge_w = ((size - small) // 2 for size, small in zip(x.shape[2:], similarity.shape[1:], strict=True))
    centres = weight[:, edge_h : weight.shape[1] - edge_h, edge_w : weight.shape[2] - edge_w]
    upper, lower = colour_errors(generated, silhouette, true, silhouette)
    return PersonFidelity(
        l1=_mean(absolute, weight),
        psnr=(-10 * _mean(squared, weight).log10()).clamp(max=IDENTICAL_PSNR),
        ssim=_mean(similarity, centres),
        upper_colour=upper,
        lower_colour=lower,
        energy=_gradient_energy(x / 255, weight),
        true_energy=_gradient_energy(y / 255, weight),
        background_l1=_mean(absolute, 1 - weight),
    )


def colour_errors(generated: Tensor, silhouette: Tensor, other: Tensor, other_silhouette: Tensor) -> Tensor:
    """Distances in CIE Lab between the mean colours of two pictures' upper and lower bodies.

    Args:
        generated: (N, 3, H, W), uint8.
        silhouette: (N, H, W) from 0 to 1, of the person in it.
        other: (N, 3, H', W'), uint8, the true picture or the appearance's, whose pose may be another.
        other_silhouette: (N, H', W').

    Returns:
        (2, N) float64: of the upper bodies and the lower ones; NaN where one is not seen.
    """
    colours = _clothes(generated, silhouette) - _clothes(other, other_silhouette)
    return torch.linalg.vector_norm(colours, dim=2)


def joined_fidelity(parts: Sequence[PersonFidelity]) -> PersonFidelity:
    """The figures of several batches, one after the other."""
    names = [field.name for field in fields(PersonFidelity)]
    return PersonFidelity(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def person_figures(scores: PersonFidelity, unchanged: PersonFidelity) -> dict[str, float]:
    """Means over all pictures in which something of the person is seen, by the figure's name in tables.

    `transfer` is 1 - L1 / L1 of the structure's picture as it is: 0 for a generator that does nothing, 1 for a
    perfect one. `sharpness` is the ratio of gradient energies: 1 as sharp as the true picture, below it blurred,
    above it noisy.
    """
    mean = {field.name: float(getattr(scores, field.name).nanmean()) for field in fields(PersonFidelity)}
    unchanged_l1 = float(unchanged.l1.nanmean())
    return {
        "person_L1": mean["l1"],
        "person_PSNR": mean["psnr"],
        "person_SSIM": mean["ssim"],
        "upper_colour": mean["upper_colour"],
        "lower_colour": mean["lower_colour"],
        "transfer": 1 - mean["l1"] / unchanged_l1 if unchanged_l1 else float("nan"),
        "sharpness": mean["energy"] / mean["true_energy"] if mean["true_energy"] else float("nan"),
        "background_L1": mean["background_l1"],
    }


def identity_ranks(
    queries: Tensor, gallery: Tensor, gallery_ids: Tensor, wanted: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Rank of an identity among all of the gallery's, by its picture that is most similar to the query.

    Args:
        queries: (N, D), rows of unit length, of generated pictures.
        gallery: (G, D), of real pictures.
        gallery_ids: (G) int64, whose they are.
        wanted: (N) int64, the identity whose rank is asked for.
        left_out: (N, K) int64, places of gallery pictures that do not count for a query, such as those it was generated
            from; -1: none.

    Returns:
        (N) int64: 1 for the most similar identity; equal similarities count against it; 0 where the gallery holds no
        picture of it.
    """
    people, place = gallery_ids.unique(return_inverse=True)
    column = torch.searchsorted(people, wanted).clamp(max=len(people) - 1)
    ranks = []
    for rows in torch.arange(len(queries), device=queries.device).split(256):
        similarity = queries[rows] @ gallery.T
        if left_out is not None:
            of_row, of_slot = (left_out[rows] >= 0).nonzero().unbind(1)
            similarity[of_row, left_out[rows][of_row, of_slot]] = -torch.inf
        best = similarity.new_full((len(rows), len(people)), -torch.inf)
        best.scatter_reduce_(1, place.expand(len(rows), -1), similarity, "amax")
        own = best.gather(1, column[rows, None])
        known = (people[column[rows]] == wanted[rows]) & own[:, 0].isfinite()
        ranks.append((best >= own).sum(1) * known)
    return torch.cat(ranks)


# ------------------------------------------------------------------------------------------------------------
# What the above is made of


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over height and width, weighted; NaN where nothing weighs."""
    total = weight.sum(dim=(-2, -1))
    mean = (values * weight).sum(dim=(-2, -1)) / total
    return mean.masked_fill(total < _LEAST, torch.nan)


def _clothes(pixels: Tensor, silhouette: Tensor) -> Tensor:
    """Mean Lab colours (2, N, 3) of the upper and the lower body of people."""
    colour, weight = lab(pixels).double(), silhouette.double()
    parts = (_part_of_body(weight, share)[:, None] for share in (UPPER_BODY, LOWER_BODY))
    return torch.stack([_mean(colour, part) for part in parts])


def _part_of_body(silhouette: Tensor, share: tuple[float, float]) -> Tensor:
    """The silhouettes (N, H, W) between two shares of their own heights."""
    rows = torch.arange(silhouette.shape[1], device=silhouette.device)
    seen = (silhouette > 0.5).any(dim=2)
    top = torch.where(seen, rows, len(rows)).amin(dim=1, keepdim=True)
    bottom = torch.where(seen, rows + 1, 0).amax(dim=1, keepdim=True)
    first, last = (top + part * (bottom - top) for part in share)
    return silhouette * ((rows >= first) & (rows < last))[:, :, None]


def _gradient_energy(x: Tensor, weight: Tensor) -> Tensor:
    """Mean squared difference of neighbours (N) of x (N, 3, H, W), where both lie within the silhouette."""
    energy, total = x.new_zeros(len(x)), x.new_zeros(len(x))
    for dim in (2, 3):
        length = x.shape[dim] - 1
        squared = (x.narrow(dim, 1, length) - x.narrow(dim, 0, length)).square().mean(1)
        both = torch.minimum(weight.narrow(dim - 1, 1, length), weight.narrow(dim - 1, 0, length))
        energy += (squared * both).sum((1, 2))
        total += both.sum((1, 2))
    return (energy / total).masked_fill(total < _LEAST, torch.nan)
