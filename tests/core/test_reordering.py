"""A second stage of ranking: the nearest in another order, all others behind them as they were."""

from dataclasses import replace
from typing import cast

import pytest
import torch

from dgnet_core.fdgan.config import FDGANConfig
from dgnet_core.fdgan.step import build, encoder_of, verifying
from dgnet_core.learning.augment import normalise
from dgnet_core.learning.config import StepConfig
from dgnet_core.methods import METHODS
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.extraction import extract
from dgnet_core.ranking.features import Features
from dgnet_core.ranking.reordering import Reordering, Unscaled, reordered
from dgnet_core.ranking.retrieval import sweep_beta, top_matches
from tests.helpers.generators import tiny_method
from tests.helpers.tiny import tiny_pictures


def by_first_value(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return -(first - second)[:, 0].abs()


def test_the_nearest_get_another_order():
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.7, 0.6]])
    gallery = torch.tensor([[5.0], [0.0], [4.0], [1.0], [1.0]])
    new = reordered(scores, torch.zeros(1, 1), gallery, Reordering(compare=by_first_value, nearest=4))
    # 3 and 4 are as alike: 3 was nearer; 1 would be the most alike, but is not among the nearest
    assert new.argsort(dim=1, descending=True).tolist() == [[3, 4, 2, 0, 1]]
    assert new[0, 1] == scores[0, 1]
    all_of_them = reordered(scores, torch.zeros(1, 1), gallery, Reordering(compare=by_first_value))
    assert all_of_them.argsort(dim=1, descending=True).tolist() == [[1, 3, 4, 2, 0]]


def features(prim: list[list[float]], fine: list[list[float]], persons: list[int], camera: int) -> Features:
    return Features(
        prim=torch.tensor(prim), fine=torch.tensor(fine), person_ids=torch.tensor(persons),
        camera_ids=torch.full((len(persons),), camera),
    )  # fmt: skip


def test_figures_and_lists_are_those_of_the_new_order():
    query = features([[1.0, 0.0]], [[0.0]], [7], 1)
    gallery = features([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.9, 0.4]], [[3.0], [2.0], [0.5], [0.1]], [1, 2, 7, -1], 2)
    how = Reordering(compare=by_first_value, nearest=3)  # junk is taken out first
    (before,) = sweep_beta(query, gallery, [0.0])
    (after,) = sweep_beta(query, gallery, [0.0], reranking=how)
    assert (before.first_match_rank.tolist(), after.first_match_rank.tolist()) == ([3], [1])
    assert top_matches(query, gallery, 3, 0.0, reranking=how).gallery_index.tolist() == [[2, 1, 0]]
    (untouched,) = sweep_beta(query, gallery, [0.0], reranking=replace(how, nearest=2))
    assert untouched.first_match_rank.tolist() == [3]


def test_fd_gans_verifier_compares_features_as_they_come():
    config = cast(FDGANConfig, tiny_method(METHODS["fdgan"], step=StepConfig()))
    state = build(config)
    encoder = encoder_of(state)
    torch.nn.init.normal_(encoder.classifier.weight)  # different for both logits
    pixels, labels = tiny_pictures(config)  # pyright: ignore[reportArgumentType]
    height, width = config.network.height, config.network.width
    found = extract(Unscaled(encoder), pixels, labels, labels, height=height, width=width)
    assert found.prim.norm(dim=1).tolist() == pytest.approx([1.0] * len(pixels), abs=1e-5)
    x = normalise(pixels, height, width)
    with evaluating(encoder):
        raw = (encoder(x) + encoder(x.flip(3))) / 2
        logits = encoder.compare(raw[:-1], raw[1:])
    assert torch.allclose(found.fine, raw, atol=1e-5)
    alike = verifying(state)(found.fine[:-1], found.fine[1:])
    assert torch.allclose(alike, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)
    assert encoder.training
