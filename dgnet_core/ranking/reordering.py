"""The nearest images of a query in another order, by what a network says of two features (FD-GAN)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.scoring import largest


@dataclass(frozen=True, kw_only=True)
class Reordering:
    """Settings of a second stage of ranking."""

    compare: Callable[[Tensor, Tensor], Tensor]
    """How alike images are, (M), higher for more alike, of two features (M, D) as the network gives them."""
    nearest: int = 100
    """Images of a query that get another order; all others stay behind them."""


class Unscaled(DescriptorNetwork):
    """A network with one feature, which is the fine half too, of any length: what `Reordering` compares."""

    unscaled_fine = True

    def __init__(self, network: DescriptorNetwork):
        super().__init__()
        self.network = network

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature (N, D) of normalised images (N, 3, H, W), twice."""
        feature, _ = self.network.describe(x)
        return feature, feature


def reordered(scores: Tensor, query: Tensor, gallery: Tensor, settings: Reordering) -> Tensor:
    """Scores (Q, G) whose order is another among each query's nearest; equally alike ones keep theirs.

    Args:
        scores: (Q, G), higher for nearer images.
        query: features (Q, D).
        gallery: features (G, D).
        settings: what compares them, and how many.
    """
    best = largest(scores, min(settings.nearest, scores.shape[1]))  # nearest first
    alike = [
        settings.compare(one.expand(best.shape[1], -1), gallery[row]) for one, row in zip(query, best, strict=True)
    ]
    order = torch.stack(alike).argsort(dim=1, descending=True, stable=True)
    ahead = torch.arange(best.shape[1], 0, -1, device=scores.device, dtype=scores.dtype)
    return scores.scatter(1, best.gather(1, order), scores.amax(dim=1, keepdim=True) + ahead)
