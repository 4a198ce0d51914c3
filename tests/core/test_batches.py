"""Which images a batch has, and the draws of a position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgnet_core.learning.batches import PairSampler, Position, share


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_sampler_properties(data) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=30)))
    world_size = data.draw(st.sampled_from([1, 2, 3, 4]))
    sampler = PairSampler(labels, batch_size=8, seed=data.draw(st.integers(0, 5)))
    for iteration in data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=5)):  # random access, any order
        rows = sampler.batch_at(iteration)
        assert rows.shape == (4, 8)
        assert torch.equal(labels[rows[:2]], labels[rows[2:]])
        for image, positive in zip(rows[:2].flatten(), rows[2:].flatten(), strict=True):
            alone = (labels == labels[image]).sum() == 1
            assert (image == positive) == alone
        parts = [sampler.batch_at(iteration, share(8, rank, world_size)) for rank in range(world_size)]
        assert torch.equal(torch.cat(parts, dim=1), rows)
        assert torch.equal(PairSampler(labels, 8, sampler.seed).batch_at(iteration), rows)


def test_every_image_is_seen_once_an_epoch() -> None:
    labels = torch.arange(24) // 3
    sampler = PairSampler(labels, batch_size=8, seed=3)
    rows = torch.stack([sampler.batch_at(t) for t in range(3)])
    for stream in range(2):
        assert sorted(rows[:, stream].flatten().tolist()) == list(range(24))
    assert not torch.equal(rows[:, 0], rows[:, 1])
    later = torch.stack([sampler.batch_at(t) for t in range(3, 6)])
    assert not torch.equal(rows[:, 0], later[:, 0])
    assert not torch.equal(rows[:, 1], later[:, 1])


def test_shuffles_and_positives_have_their_own_draws_in_every_run_and_epoch() -> None:
    person = torch.zeros(24, dtype=torch.int64)  # a batch is an epoch
    runs = [PairSampler(person, 24, seed).batch_at(iteration).chunk(2) for seed in (0, 1) for iteration in (0, 1)]
    orders = {tuple(order.tolist()) for images, _ in runs for order in images}
    places = [positives - (positives > images).long() for images, positives in runs]  # among the 23 others
    assert len(orders) == 8
    assert len({tuple(place.tolist()) for stream in places for place in stream}) == 8


def test_positives_are_uniform_over_the_others() -> None:
    sampler = PairSampler(torch.zeros(4, dtype=torch.int64), batch_size=8, seed=0)
    rows = torch.stack([sampler.batch_at(t) for t in range(600)]).transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(rows[2][rows[0] == image], minlength=4) for image in range(4)])
    share = counts / counts.sum(1, keepdim=True)
    assert share.diagonal().sum() == 0
    assert (share + torch.eye(4) / 3 - 1 / 3).abs().max() < 0.06


@given(batch_size=st.integers(1, 100), world_size=st.integers(1, 50))
def test_shares_are_the_whole_batch_in_order(batch_size: int, world_size: int) -> None:
    if batch_size < world_size:
        with pytest.raises(ValueError, match=f"batch_size = {batch_size} over {world_size} ranks"):
            share(batch_size, 0, world_size)
        return
    shares = [share(batch_size, rank, world_size) for rank in range(world_size)]
    assert [place for places in shares for place in places] == list(range(batch_size))
    assert {len(places) - batch_size // world_size for places in shares} <= {0, 1}


def test_eight_images_over_three_ranks() -> None:
    shares = [share(8, rank, 3) for rank in range(3)]
    assert shares == [range(2), range(2, 5), range(5, 8)]
    draws = [
        Position(seed=1, iteration=5, first=places.start, total=8).uniform("a", (len(places), 3), "cpu")
        for places in shares
    ]
    assert torch.equal(torch.cat(draws), Position(seed=1, iteration=5).uniform("a", (8, 3), "cpu"))


def test_sampler_refuses_places_outside_the_batch() -> None:
    sampler = PairSampler(torch.arange(10), batch_size=8, seed=0)
    for places in (range(6, 9), range(-1, 2), range(0)):
        with pytest.raises(ValueError, match=r"choose from range\(0, 8\)"):
            sampler.batch_at(0, places)
    with pytest.raises(ValueError, match="rank = 2: 2 ranks are numbered from 0 to 1"):
        share(8, 2, 2)
    with pytest.raises(ValueError, match="places 6 to 8 of a batch of 8"):
        Position(seed=0, iteration=0, first=6, total=8).uniform("a", (3,), "cpu")
    with pytest.raises(ValueError, match="one identity per training image"):
        PairSampler(torch.zeros(0), 8, 0)


def test_draws_are_a_function_of_the_position() -> None:
    def draws(**position):
        return Position(**position).uniform("a", (2, 3), "cpu")

    whole = Position(seed=1, iteration=5).uniform("a", (4, 3), "cpu")
    parts = [draws(seed=1, iteration=5, first=first, total=4) for first in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draws(seed=1, iteration=5), draws(seed=1, iteration=6))
    assert not torch.equal(draws(seed=1, iteration=5), draws(seed=2, iteration=5))
    assert not torch.equal(draws(seed=1, iteration=5), Position(seed=1, iteration=5).uniform("b", (2, 3), "cpu"))


def test_the_least_uniform_draw_makes_a_finite_normal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Position, "uniform", lambda *_: torch.zeros(2, 3))
    draws = Position(seed=0, iteration=0).normal("noise", (2, 3), "cpu")
    assert torch.isfinite(draws).all()
    assert float(draws[0, 0]) == pytest.approx(-5.42, abs=0.05)  # one in 2^25 lies below
