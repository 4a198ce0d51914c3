"""Drawn features of persons, for ranking."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st

from dgnet_core.ranking.features import Features

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, images: int, persons: int, width: int = 6, noise: float = 0.8) -> Features:
    """Two halves around a centre per person (the same for all seeds); persons start at 0, a tenth is junk."""
    rng = np.random.default_rng(seed)
    ids = np.where(rng.random(images) < 0.1, -1, rng.integers(0, persons, images))
    centres = np.random.default_rng(0).standard_normal((persons + 1, 2 * width))
    values = centres[ids] + noise * rng.standard_normal((images, 2 * width))
    prim, fine = torch.from_numpy(values).float().split(width, dim=1)
    cameras = torch.from_numpy(rng.integers(1, 4, images))
    return Features(
        prim=F.normalize(prim), fine=F.normalize(fine), person_ids=torch.from_numpy(ids), camera_ids=cameras
    )


def with_integers(features: Features) -> Features:
    """Coarse integer halves: products are exact in any order, and ties abound."""
    return Features(
        prim=(3 * features.prim).round(),
        fine=(3 * features.fine).round(),
        person_ids=features.person_ids,
        camera_ids=features.camera_ids,
    )


def assume_no_near_ties(scores: torch.Tensor) -> None:
    """Leaves out cases that rounding may order either way."""
    assume(scores.sort(dim=1).values.diff(dim=1).min() > 1e-6)
