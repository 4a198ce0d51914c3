"""Configuration, schedules, losses and sampling: pure functions against hand-computed values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgnet_core.dgnet import schedule
from dgnet_core.dgnet.config import DGNetConfig, LossConfig, OptimConfig, RecipeConfig, WatchConfig, laptop, paper
from dgnet_core.dgnet.losses import prim, soft_label
from dgnet_core.learning import losses
from dgnet_core.learning.batches import PairSampler, Position, share
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.learning.schedule import decay, ramp
from dgnet_core.networks.config import NetworkConfig

# ----------------------------------------------------------------------------------------------------------------
# Configuration


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkConfig(height=250), r"height = 250: the decoder restores multiples of 4 only: 248 or 252"),
        (lambda: NetworkConfig(width=36), r"width = 36: aspp_dilations \(3, 6, 9\).* need at least 40"),
        (lambda: NetworkConfig(discriminator_scales=0), "discriminator_scales = 0: must be positive"),
        (lambda: NetworkConfig(prim_dropout=1.0), "prim_dropout = 1.0"),
        (lambda: NetworkConfig(appearance_layers=(1, 0, 1, 1)), "appearance_layers"),
        (lambda: Warmup(slope=math.inf), "slope = inf: .* a ramp of zero length"),
        (lambda: Warmup(slope=0), "slope = 0"),
        (lambda: Warmup(start=-1), "start = -1"),
        (lambda: LossConfig(image=-1), "LossConfig.image = -1: a weight is a finite number >= 0"),
        (lambda: LossConfig(alpha=math.nan), "alpha = nan"),
        (lambda: RecipeConfig(gan="wgan"), "gan = 'wgan': choose one of lsgan, nsgan"),  # pyright: ignore[reportArgumentType]
        (lambda: RecipeConfig(reencode_probability=2), "reencode_probability = 2"),
        (lambda: OptimConfig(milestones=(5, 3)), "milestones"),
        (lambda: OptimConfig(clip_norm=0), "clip_norm = 0"),
        (lambda: OptimConfig(adam_betas=(0.5, 1.0)), "adam_betas"),
        (lambda: AugmentConfig(erase_area=(0.5, 0.2)), "erase_area"),
        (lambda: AugmentConfig(pad=-1), "pad = -1"),
        (lambda: StepConfig(precision="float16"), "precision = 'float16': choose one of"),  # pyright: ignore[reportArgumentType]
        (lambda: WatchConfig(factor=1), "factor = 1"),
        (lambda: DGNetConfig(num_classes=1), "num_classes = 1"),
        (lambda: DGNetConfig(num_classes=2, batch_size=1), "batch_size = 1: BatchNorm"),
        (lambda: DGNetConfig(num_classes=2, seed=-1), "seed = -1"),
    ],
)
def test_nonsense_is_refused_by_name(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_adam_accepts_betas_given_as_whole_numbers() -> None:
    assert OptimConfig(adam_betas=(0, 0.999)).adam_betas == (0.0, 0.999)
    assert isinstance(OptimConfig(adam_betas=(0, 0.999)).adam_betas[0], float)


def test_presets_scale_their_schedule() -> None:
    assert paper(751).loss.teacher_warmup == Warmup(start=30_000, slope=0.0005)
    config = laptop(40, iterations=1_000)
    assert config.loss.teacher_warmup.start == 300
    assert config.loss.teacher_warmup.end(config.loss.prim) == 340
    assert config.optim.milestones == (800, 950)
    assert laptop(40, iterations=1).optim.milestones == (1,)


# ----------------------------------------------------------------------------------------------------------------
# Schedules


@pytest.mark.parametrize(
    ("iteration", "prim", "code", "cycle", "fine_real"),
    [
        (0, 0, 0, 0, 0),
        (30_000, 0, 0, 0, 0),
        (30_001, 0.0005, 0.0005, 0.0005, 0),
        (30_002, 0.001, 0.001, 0.001, 0.0001),
        (32_000, 1.0, 1.0, 1.0, 0.1999),
        (34_000, 2.0, 1.0, 2.0, 0.3999),
        (99_999, 2.0, 1.0, 2.0, 0.4),
    ],
)
def test_weights_of_the_release(iteration: int, prim: float, code: float, cycle: float, fine_real: float) -> None:
    weights = schedule.weights(LossConfig(), RecipeConfig(), iteration)
    assert weights.prim == pytest.approx(prim)
    assert weights.fine == pytest.approx(0.2 * prim)
    assert weights.appearance_code == weights.structure_code == pytest.approx(code)
    assert weights.cycle == pytest.approx(cycle)
    assert weights.fine_real == pytest.approx(fine_real)


def test_each_warm_up_ramps_its_own_terms() -> None:
    loss = LossConfig(
        appearance_code=0.3, structure_code=0.5, cycle=1.0, prim=4.0, alpha=0.25,
        code_warmup=Warmup(start=100, slope=0.01), teacher_warmup=Warmup(start=200, slope=0.1),
    )  # fmt: skip
    early, late = (vars(schedule.weights(loss, RecipeConfig(), iteration)) for iteration in (140, 210))
    fed = {"prim": 0, "fine": 0, "fine_real": 0}
    assert early == pytest.approx({"appearance_code": 0.3, "structure_code": 0.4, "cycle": 0.4, **fed})
    fed = {"prim": 1.0, "fine": 0.25, "fine_real": 0.225}
    assert late == pytest.approx({"appearance_code": 0.3, "structure_code": 0.5, "cycle": 1.0, **fed})


@given(start=st.integers(0, 1000), slope=st.floats(1e-6, 10), maximum=st.floats(0, 10), t=st.integers(0, 3000))
def test_ramp_is_zero_before_and_constant_after(start: int, slope: float, maximum: float, t: int) -> None:
    warmup = Warmup(start=start, slope=slope)
    value = ramp(warmup, maximum, t)
    assert 0 <= value <= maximum
    if t <= start:
        assert value == 0
    if t >= warmup.end(maximum):
        assert value == pytest.approx(maximum)


def test_learning_rates_fall_at_milestones() -> None:
    optim = OptimConfig()
    rates = [decay(optim.milestones, optim.decay, t) for t in (0, 59_998, 59_999, 89_998, 89_999, 104_999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])


# ----------------------------------------------------------------------------------------------------------------
# Losses


def test_losses_by_hand() -> None:
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0]])
    assert losses.image_l1(a, b) == losses.code_l1(a, b) == 1.5
    even = torch.zeros(2, 4)
    assert losses.identity(even, torch.tensor([0, 3])) == pytest.approx(math.log(4))
    fake, real = [torch.tensor([0.5, -0.5])], [torch.tensor([1.0, 0.0])]
    assert losses.discriminator_adversarial(fake, real, "lsgan") == pytest.approx(0.25 + 0.5)
    assert losses.generator_adversarial(fake, "lsgan") == pytest.approx(2 * (0.25 + 2.25) / 2)
    fake, real = [torch.tensor([2.0, -1.0]), torch.tensor([0.0])], [torch.tensor([3.0, 0.0]), torch.tensor([-1.0])]
    says_real = lambda score: -math.log(1 / (1 + math.exp(-score)))  # noqa: E731  minus log probability of "real"
    fooled = (says_real(2) + says_real(-1)) / 2 + says_real(0)
    seen_through = (says_real(-2) + says_real(1)) / 2 + says_real(0)
    recognised = (says_real(3) + says_real(0)) / 2 + says_real(-1)
    assert losses.generator_adversarial(fake, "nsgan") == pytest.approx(fooled)
    assert losses.discriminator_adversarial(fake, real, "nsgan") == pytest.approx(seen_through + recognised)
    x = torch.ones(2, 1, 1, 2, requires_grad=True)
    scores = [(3 * x).sum(dim=(2, 3)), x[..., 0]]
    assert losses.gradient_penalty(scores, x) == pytest.approx(2 * 9 + 1)


def test_prim_is_zero_when_the_student_agrees_and_cross_entropy_for_hard_labels() -> None:
    logits = torch.randn(3, 5)
    assert prim(logits, logits.softmax(1)) == pytest.approx(0, abs=1e-6)
    labels = torch.tensor([0, 2, 4])
    target = soft_label("appearance", None, labels, labels, 5)
    assert prim(logits, target) == pytest.approx(float(losses.identity(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("style", ["dynamic", "pseudo", "appearance", "uniform", "two_label"])
def test_soft_labels_are_distributions(style) -> None:
    teacher = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    appearance, structure = torch.tensor([2, 1]), torch.tensor([0, 1])
    q = soft_label(style, teacher, appearance, structure, 3)
    expected = {
        "dynamic": teacher.tolist(),
        "pseudo": [[0, 1, 0], [1, 0, 0]],
        "appearance": [[0, 0, 1], [0, 1, 0]],
        "uniform": [[1 / 3] * 3] * 2,
        "two_label": [[0.5, 0, 0.5], [0, 1, 0]],
    }
    torch.testing.assert_close(q, torch.tensor(expected[style], dtype=torch.float32))


# ----------------------------------------------------------------------------------------------------------------
# Sampling


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


@given(batch_size=st.integers(2, 100), world_size=st.integers(1, 50))
def test_shares_are_the_whole_batch_in_order(batch_size: int, world_size: int) -> None:
    if batch_size < 2 * world_size:
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
