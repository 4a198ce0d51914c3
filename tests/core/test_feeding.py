"""Which generated pictures feed the re-id heads, against a plain account of it; and by what batch b is drawn."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.dgnet.config import DGNetConfig, FeedConfig, RecipeConfig
from dgnet_core.dgnet.losses import fed_weights, prim
from dgnet_core.dgnet.networks import pool_code, to_gray
from dgnet_core.dgnet.schedule import fed_share, settings
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.batches import Batch, PairSampler
from dgnet_core.networks.config import NetworkConfig
from tests.helpers.tiny import START, assert_same, tiny_batch, tiny_config, tiny_state

TEACHER = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3], [0.2, 0.0, 0.8]], dtype=torch.float64)


def test_weights_by_hand() -> None:
    draws = torch.tensor([0.1, 0.1, 0.9]).double()
    assert fed_weights(FeedConfig(), 1.0, TEACHER, None) is None
    cases: list[tuple[dict[str, Any], Tensor | None, list[float]]] = [
        ({"confidence": "filter"}, None, [1, 0, 1]),
        ({"confidence": "filter", "least_confidence": 0.7}, None, [0, 0, 1]),
        ({"confidence": "weight"}, None, [0.6, 0.4, 0.8]),
        ({}, draws, [1, 1, 0]),
        ({"confidence": "weight"}, draws, [0.6, 0.4, 0]),
    ]
    for fields, drawn, expected in cases:
        weights = fed_weights(FeedConfig(**fields), 0.5, TEACHER, drawn)
        assert weights is not None
        assert weights.tolist() == pytest.approx(expected)


def test_weighted_losses_are_means_over_all_pictures() -> None:
    logits = torch.randn(3, 3, dtype=torch.float64)
    assert prim(logits, TEACHER, torch.ones(3).double()) == pytest.approx(float(prim(logits, TEACHER)))
    first = torch.tensor([2.0, 0.0, 0.0]).double()
    assert prim(logits, TEACHER, first) == pytest.approx(2 / 3 * float(prim(logits[:1], TEACHER[:1])))


def plain_feed(config: DGNetConfig, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """L_prim, L_fine and the mean weight of the tiny recipe's next iteration, picture set by picture set."""
    iteration = int(batch.position.iteration)
    state = tiny_state(config, iteration)
    E_a, E_s, G, teacher = state.appearance_encoder, state.structure_encoder, state.decoder, state.teacher
    assert teacher is not None
    share = fed_share(config, iteration)
    draws = batch.position.uniform("fed", (batch.images.shape[1], 2 * config.feed.pictures), "cpu")
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    codes = [E_a(x) for x in batch.images]
    for number in range(config.feed.pictures):
        for s, a in ((0, 1), (1, 0)):
            fake = G(E_s(to_gray(batch.images[s])), codes[a + 2 * number]).detach()
            target = teacher.labels(fake, groups=1)
            confidence = target.amax(dim=1)
            weights = {
                "all": torch.ones_like(confidence),
                "filter": (confidence >= config.feed.least_confidence).double(),
                "weight": confidence,
            }[config.feed.confidence]
            if share < 1:
                weights = weights * (draws[:, 2 * number + s] < share)
            pooled = pool_code(E_a(fake))
            divergence = F.kl_div(E_a.prim.logits(E_a.prim(pooled)).log_softmax(1), target, reduction="none").sum(1)
            entropy = F.cross_entropy(E_a.fine.logits(E_a.fine(pooled)), batch.labels[s], reduction="none")
            found.append((weights * divergence, weights * entropy, weights))
    prims, fines, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
    return 2 * prims.mean().detach(), 2 * fines.mean().detach(), weights.mean()


def quiet(**feed: Any) -> DGNetConfig:
    """The tiny recipe without dropout, erasing and with confident teachers."""
    config = tiny_config(feed=FeedConfig(**feed))
    network: NetworkConfig = replace(config.network, prim_dropout=0.0, fine_dropout=0.0)
    return replace(config, network=network, augment=replace(config.augment, erase=0.0))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "feed",
    [
        {"confidence": "weight"},
        {"confidence": "filter", "least_confidence": 0.2005},
        {"pictures": 2},
        {"share": 0.6, "last_share": 0.2},
        {"share": 0.7, "last_share": 0.7, "pictures": 2, "confidence": "weight"},
    ],
)
def test_what_feeds_is_what_the_settings_say(feed: dict[str, Any]) -> None:
    config = quiet(**feed)
    batch = tiny_batch(config, START + 2)
    metrics = train_step(tiny_state(config, START + 2), batch, config)
    # D's update comes before reading back, and changes nothing of this.
    expected = plain_feed(config, batch)
    assert metrics["L_prim"] == pytest.approx(float(expected[0]), rel=1e-9)
    assert metrics["L_fine"] == pytest.approx(float(expected[1]), rel=1e-9)
    if feed.keys() != {"pictures"}:
        assert metrics["fed_weight"] == pytest.approx(float(expected[2]), rel=1e-9)
        assert 0 < metrics["fed_weight"] < 1


@pytest.mark.usefixtures("one_thread")
def test_feeding_everything_is_the_default_in_every_bit_and_nothing_acts_before_the_warm_up() -> None:
    plain, full = tiny_config(), tiny_config(feed=FeedConfig(confidence="filter", least_confidence=0.0))
    other = tiny_config(feed=FeedConfig(confidence="weight", pictures=2, share=0.5, last_share=0.1))
    states = [tiny_state(config) for config in (plain, full, other)]
    for t in range(START + 1):
        for state, config in zip(states, (plain, full, other), strict=True):
            train_step(state, tiny_batch(config, t), config)
    for state in states[1:]:
        assert_same(states[0], state)
    losses = [
        train_step(state, tiny_batch(config, START + 1), config)["L_prim"]
        for state, config in zip(states, (plain, full, other), strict=True)
    ]
    assert losses[0] == pytest.approx(float(losses[1]))
    assert losses[0] != pytest.approx(float(losses[2]))


def test_the_share_changes_in_a_straight_line_from_the_warm_up_on() -> None:
    config = tiny_config(feed=FeedConfig(share=0.2, last_share=1.0))
    assert fed_share(config, 0) == fed_share(config, START) == 0.2
    middle = START + (config.iterations - START) // 3
    assert fed_share(config, middle) == pytest.approx(0.2 + 0.8 * (middle - START) / (config.iterations - START))
    assert fed_share(config, config.iterations) == 1.0
    assert settings(config, START)["weight/fed_share"] == 0.2
    assert "weight/fed_share" not in settings(tiny_config(), START)


def test_confidence_asks_a_teacher_whatever_the_labels() -> None:
    config = tiny_config(recipe=RecipeConfig(soft_label="appearance"))
    assert not config.needs_teacher
    config = replace(config, feed=FeedConfig(confidence="weight"))
    assert config.needs_teacher
    with pytest.raises(ValueError, match=r"feed\.confidence = 'weight' needs a teacher"):
        train_step(TrainState.build(config), tiny_batch(config, 0), config)
    assert not replace(config, recipe=RecipeConfig(online_feeding=False)).needs_teacher
    with pytest.raises(ValueError, match="pictures = 3: 1 or 2"):
        FeedConfig(pictures=3)
    with pytest.raises(ValueError, match=r"share = 1\.5: a number in"):
        FeedConfig(share=1.5)


def test_batch_b_is_drawn_by_its_weights() -> None:
    labels = torch.arange(8) % 4
    weights = torch.tensor([1.0, 1, 1, 1, 4, 4, 4, 0.5])
    sampler, plain = PairSampler(labels, 100, 0, weights=weights), PairSampler(labels, 100, 0)
    rows = torch.cat([sampler.batch_at(t) for t in range(50)], dim=1)
    found = torch.bincount(rows[1], minlength=8) / rows.shape[1]
    torch.testing.assert_close(found, weights / weights.sum(), rtol=0, atol=0.02)
    assert torch.equal(labels[rows[3]], labels[rows[1]])
    assert torch.equal(sampler.batch_at(7)[0], plain.batch_at(7)[0])  # batch a is as ever
    parts = [sampler.batch_at(7, places) for places in (range(30), range(30, 100))]
    assert torch.equal(torch.cat(parts, dim=1), PairSampler(labels, 100, 0, weights=weights).batch_at(7))
