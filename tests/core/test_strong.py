"""What a stronger recipe is made of, each against its definition: losses, pooling, neck, averages, batches, rates."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import CircleLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor

from dgnet_core.dgnet.step import train_step
from dgnet_core.learning import losses
from dgnet_core.learning.config import MetricConfig
from dgnet_core.learning.steps import metric_terms
from dgnet_core.methods import METHODS, method_of
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import GeM, Head
from dgnet_core.teacher.state import TeacherState
from dgnet_core.teacher.step import teacher_step
from tests.helpers.strong import METRIC, strong_config, strong_network, strong_teacher
from tests.helpers.tiny import (
    START,
    assert_same,
    teacher_batch,
    tiny_batch,
    tiny_config,
    tiny_state,
)

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def features(count: int = 6, width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, width, dtype=torch.float64, generator=generator, requires_grad=True)


def plain_triplet(x: Tensor, labels: list[int], anchors: list[int]) -> Tensor:
    """Hermans et al., Eq. 5, image by image."""
    found = []
    for a in anchors:
        others = [(n, (x[a] - x[n]).norm()) for n in range(len(x)) if n != a]
        positives = [d for n, d in others if labels[n] == labels[a]]
        negatives = [d for n, d in others if labels[n] != labels[a]]
        farthest = max(positives, key=torch.Tensor.item) if positives else torch.zeros(()).double()
        found.append(torch.log1p(torch.exp(farthest - min(negatives, key=torch.Tensor.item))))
    return torch.stack(found).mean()


def plain_circle(x: Tensor, labels: list[int], anchors: list[int], m: float, gamma: float) -> Tensor:
    """Sun et al., Eq. 6 with Eq. 5 and 8, pair by pair."""
    found = []
    for a in anchors:
        similar = {n: F.cosine_similarity(x[a], x[n], dim=0) for n in range(len(x)) if n != a}
        positives = [s for n, s in similar.items() if labels[n] == labels[a]]
        negatives = [s for n, s in similar.items() if labels[n] != labels[a]]
        of_positives = [torch.exp(-gamma * max(1 + m - s.item(), 0) * (s - (1 - m))) for s in positives]
        of_negatives = [torch.exp(gamma * max(s.item() + m, 0) * (s - m)) for s in negatives]
        product = sum(of_negatives, torch.zeros(()).double()) * sum(of_positives, torch.zeros(()).double())
        found.append(torch.log1p(product))
    return torch.stack(found).mean()


def test_metric_losses_are_those_of_pytorch_metric_learning() -> None:
    x, labels = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat_interleave(3)
    rows, euclidean = torch.arange(12), LpDistance(normalize_embeddings=False)
    soft = TripletMarginLoss(margin=0, smooth_loss=True, distance=euclidean)
    hardest = BatchHardMiner(distance=euclidean)(x, labels)
    torch.testing.assert_close(losses.triplet(x, labels, rows), soft(x, labels, hardest))
    for scale in (8, 128):
        torch.testing.assert_close(losses.circle(x, labels, rows, 0.25, scale), CircleLoss(0.25, scale)(x, labels))


@pytest.mark.parametrize("anchors", [[0, 1, 2, 3, 4, 5], [3, 4]])
def test_metric_losses_are_their_definitions_and_so_are_their_gradients(anchors: list[int]) -> None:
    x, rows, labels = features(), torch.tensor(anchors), LABELS.tolist()
    for value, expected in (
        (losses.triplet(x, LABELS, rows), plain_triplet(x, labels, anchors)),
        (losses.circle(x, LABELS, rows, 0.25, 8.0), plain_circle(x, labels, anchors, 0.25, 8.0)),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        found, wanted = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (value, expected))
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_metric_losses_of_one_identity_or_of_equal_images_are_finite() -> None:
    x = features()
    for labels in (torch.zeros(6, dtype=torch.int64), torch.arange(6)):
        for value in (losses.triplet(x, labels, torch.arange(6)), losses.circle(x, labels, torch.arange(6), 0.25, 128)):
            assert torch.autograd.grad(value, x)[0].isfinite().all()
    assert losses.triplet(x, torch.zeros(6, dtype=torch.int64), torch.arange(6)) == 0
    assert losses.circle(x, torch.arange(6), torch.arange(6), 0.25, 128) == 0
    same = torch.ones(4, 3, requires_grad=True)
    value = losses.triplet(same, torch.tensor([0, 0, 1, 1]), torch.arange(4))
    assert value.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(value, same)[0].isfinite().all()


def test_images_without_identity_are_negatives_only() -> None:
    x, labels, rows = features(), torch.tensor([0, -1, 0, -1, 1, -1]), torch.arange(6)
    alone, known = [0, 10, 0, 11, 1, 12], [0, 2, 4]  # each -1 is another person
    for value, expected in (
        (losses.triplet(x, labels, rows), plain_triplet(x, alone, known) / 2),  # 3 of 6 anchors have no loss
        (losses.circle(x, labels, rows, 0.25, 8.0), plain_circle(x, alone, known, 0.25, 8.0) / 2),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        found, wanted = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (value, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    none = torch.full((6,), -1)
    for value in (losses.triplet(x, none, rows), losses.circle(x, none, rows, 0.25, 8.0)):
        assert value == 0
        assert torch.autograd.grad(value, x)[0].abs().max() == 0


def test_all_sets_of_a_batch_are_compared_with_each_other() -> None:
    x = features().view(2, 3, 3)
    position = tiny_batch(tiny_config(), 0).position
    terms = metric_terms(x, LABELS.view(2, 3), METRIC, position)
    assert [(name, weight) for name, weight, _ in terms] == [("L_triplet", 1.0), ("L_circle", 0.5)]
    assert terms[0][2] == losses.triplet(x.flatten(0, 1), LABELS, torch.arange(6))
    assert not metric_terms(x, LABELS.view(2, 3), MetricConfig(), position)


def test_gem_is_the_generalised_mean_of_whole_maps_and_of_their_stripes() -> None:
    x = torch.rand(2, 5, 8, 3, dtype=torch.float64)
    gem = GeM().double()
    expected = x.pow(3).mean(dim=(2, 3)).pow(1 / 3)
    torch.testing.assert_close(gem(x).squeeze(2), expected)
    stripes = gem(x, 4)
    torch.testing.assert_close(stripes[:, :, 1], x[:, :, 2:4].pow(3).mean(dim=(2, 3)).pow(1 / 3))
    torch.testing.assert_close(gem.merge(stripes), expected)
    assert torch.autograd.gradcheck(lambda p, x: torch.func.functional_call(gem, {"exponent": p}, (x,)), (
        torch.tensor([2.5], dtype=torch.float64, requires_grad=True), x[:1, :2, :2].clone().requires_grad_(),
    ))  # fmt: skip
    gem.exponent.data.fill_(1.0)
    torch.testing.assert_close(gem(x).squeeze(2), x.mean(dim=(2, 3)))


def test_a_bnneck_compares_before_its_norm_which_does_not_shift() -> None:
    plain, necked, bare = Head(6, 4, 5, 0.0), Head(6, 4, 5, 0.0, "bnneck"), Head(6, 0, 5, 0.0, "bnneck")
    x = torch.randn(8, 6)
    compared, feature = plain.both_sides(x)
    assert compared is feature
    compared, feature = necked.both_sides(x)
    assert necked.reduce is not None
    assert torch.equal(compared, necked.reduce(x))
    assert feature.mean(dim=0).abs().max() < 1e-6
    assert necked.classifier.bias is None
    assert "norm.bias" not in dict(necked.named_parameters())
    assert bare.reduce is None
    assert bare.both_sides(x)[0] is x
    assert bare(x).shape == (8, 6)
    with pytest.raises(ValueError, match=r"NetworkConfig\.bottleneck = 0: with neck release, at least 1"):
        NetworkConfig(bottleneck=0)
    with pytest.raises(ValueError, match=r"DGNetConfig.network.*bottleneck = 0"):
        replace(tiny_config(), network=replace(tiny_config().network, neck="bnneck", bottleneck=0))


@pytest.mark.usefixtures("one_thread")
def test_the_teacher_descends_from_the_sum_of_its_losses() -> None:
    config = strong_teacher(optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup_iterations=0, cosine_end=None)
    state, twin = TeacherState.build(config), TeacherState.build(config).teacher
    batch = teacher_batch(config, 0)
    metrics = teacher_step(state, batch, config)
    assert batch.erased is not None
    assert twin.pool is not None
    compared = twin.pool(twin.trunk(batch.erased[0])).squeeze(2)
    labels, anchors = batch.labels[0], torch.arange(8)
    parts = {
        "L_id": F.cross_entropy(twin.head.logits(twin.head(compared)), labels, label_smoothing=0.1),
        "L_triplet": plain_triplet(compared, labels.tolist(), anchors.tolist()),
        "L_circle": plain_circle(compared, labels.tolist(), anchors.tolist(), 0.25, 8.0),
    }
    for name, value in parts.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-9), name
    (parts["L_id"] + parts["L_triplet"] + 0.5 * parts["L_circle"]).backward()
    for (name, ours), theirs in zip(state.teacher.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.usefixtures("one_thread")
def test_dgnets_metric_losses_compare_both_batches_and_their_positives() -> None:
    config = strong_config(network=strong_network(prim_dropout=0.0))
    state, twin = tiny_state(config), tiny_state(config).appearance_encoder
    batch = tiny_batch(config, 0)
    metrics = train_step(state, batch, config)
    assert batch.erased is not None
    compared, feature = twin.prim.both_sides(twin.pool(twin(batch.erased.flatten(0, 1), groups=4)), 4)
    people = batch.labels.repeat(2, 1).flatten()
    rows = list(range(len(people)))
    assert metrics["L_triplet"] == pytest.approx(2 * plain_triplet(compared, people.tolist(), rows).item())
    assert metrics["L_circle"] == pytest.approx(2 * plain_circle(compared, people.tolist(), rows, 0.25, 8.0).item())
    half = len(people) // 2
    identity = F.cross_entropy(twin.prim.logits(feature)[:half], people[:half], label_smoothing=0.1)
    assert metrics["L_s_id"] == pytest.approx(2 * identity.item())


def runs() -> list[tuple]:
    return [(tiny_state, strong_config(), tiny_batch), (TeacherState.build, strong_teacher(), teacher_batch)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("which", [0, 1])
def test_the_average_is_that_of_the_weights_and_a_resumed_run_has_the_same_bits(which: int) -> None:
    build, config, batch_of = runs()[which]
    step = method_of(config).step
    whole, first = build(config), build(config)
    (name,) = whole.averages
    expected = None
    for t in range(START + 4):
        step(whole, batch_of(config, t), config)
        share = max(1 - config.ema, 1 / (t + 1))
        now = {n: v.clone() for n, v in whole.networks[name].state_dict().items()}
        expected = now if expected is None else {
            n: v if not v.is_floating_point() else (1 - share) * expected[n] + share * v for n, v in now.items()
        }  # fmt: skip
    assert expected is not None
    for tensor, value in whole.averages[name].state_dict().items():
        torch.testing.assert_close(value, expected[tensor], rtol=1e-12, atol=1e-12, msg=tensor)

    for t in range(START):
        step(first, batch_of(config, t), config)
    resumed = build(replace(config, seed=9))
    resumed.load_state_dict(deepcopy(first.state_dict()))
    for t in range(START, START + 4):
        step(resumed, batch_of(config, t), config)
    assert_same(whole, resumed)


@pytest.mark.usefixtures("one_thread")
def test_training_does_not_depend_on_the_average_which_describes() -> None:
    with_, without = strong_teacher(), strong_teacher(ema=0.0)
    states = [TeacherState.build(config) for config in (with_, without)]
    for t in range(3):
        for state, config in zip(states, (with_, without), strict=True):
            teacher_step(state, teacher_batch(config, t), config)
    saved = [state.state_dict() for state in states]
    averages = saved[0].pop("averages")
    assert saved[0].keys() == saved[1].keys()
    for tensor, value in states[0].teacher.state_dict().items():
        assert torch.equal(value, states[1].teacher.state_dict()[tensor])
    describe = METHODS["teacher"].describe
    assert describe is not None
    assert describe(states[0]) is states[0].averages["teacher"]
    assert describe(states[1]) is states[1].teacher
    assert not torch.equal(averages["teacher"]["trunk.conv1.weight"], states[0].teacher.trunk.conv1.weight)
    # A run that begins to average starts from the networks; one that stops leaves the averages behind.
    states[0].load_state_dict(deepcopy(states[1].state_dict()))
    assert torch.equal(states[0].describing_teacher.trunk.conv1.weight, states[1].teacher.trunk.conv1.weight)
    states[1].load_state_dict(states[0].state_dict())
