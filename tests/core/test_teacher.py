"""Training the teacher: exact, resumable, distributed; its configuration and its schedule."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dgnet_core.dgnet.config import LossConfig, laptop, paper
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning import losses
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import PairSampler, Position
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.learning.health import raise_fault
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.config import TeacherConfig, laptop_teacher, paper_teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_core.teacher.step import teacher_rate, teacher_step
from tests.helpers.tiny import (
    CLASSES,
    assert_same,
    flat,
    teacher_batch,
    tiny_batch,
    tiny_config,
    tiny_pictures,
    tiny_teacher_config,
)


def run(state: TeacherState, config: TeacherConfig, until: int) -> list[dict]:
    return [teacher_step(state, teacher_batch(config, t), config) for t in range(state.iteration, until)]


# ----------------------------------------------------------------------------------------------------------------
# The step


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_two_runs_are_equal_in_every_bit(precision: str) -> None:
    # Wider pictures than elsewhere: the CPU's bfloat16 convolution of stride 2 is wrong on maps one pixel wide.
    network = replace(tiny_config().network, width=32)
    config = tiny_teacher_config(network=network, step=StepConfig(precision=precision))  # pyright: ignore[reportArgumentType]
    first, second = TeacherState.build(config), TeacherState.build(config)
    torch.manual_seed(123)  # the global generator plays no part
    run(first, config, 4)
    torch.manual_seed(321)
    run(second, config, 4)
    assert_same(first, second)


@pytest.mark.parametrize("saved_at", [1, 5, 7])
def test_resumed_run_equals_the_uninterrupted_one(saved_at: int, tmp_path: Path) -> None:
    config = tiny_teacher_config()  # warm-up to 2, a milestone at 6
    whole = TeacherState.build(config)
    metrics = run(whole, config, 9)

    state = TeacherState.build(config)
    run(state, config, saved_at)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    resumed = TeacherState.build(config, pretrained=False)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = run(resumed, config, 9)

    assert_same(whole, resumed)
    assert [m["L_id"].item() for m in rest] == [m["L_id"].item() for m in metrics[saved_at:]]


def test_it_learns() -> None:
    config = tiny_teacher_config(step=StepConfig(), augment=AugmentConfig(flip=0, pad=0, erase=0), milestones=())
    state = TeacherState.build(config)
    batch = teacher_batch(config, 0)
    metrics = [
        teacher_step(state, replace(batch, position=replace(batch.position, iteration=t)), config) for t in range(60)
    ]
    assert set(metrics[0]) == {"L_id", "accuracy", "grad_teacher"}
    assert metrics[0]["L_id"] == pytest.approx(math.log(CLASSES), abs=0.1)
    assert metrics[-1]["L_id"] < 0.5 * metrics[0]["L_id"]
    assert torch.stack([m["accuracy"] for m in metrics[-5:]]).mean() > 0.8
    assert state.teacher.head.norm.num_batches_tracked == 60


@pytest.mark.parametrize("shares", [(0, 3, 6), (0, 2, 6)])
def test_ranks_with_averaged_gradients_follow_the_mean_loss(shares: tuple[int, ...]) -> None:
    config = tiny_teacher_config(augment=AugmentConfig(pad=1, erase=0.5))
    whole = teacher_batch(config, 0)
    gradients, sizes = [], []
    for start, stop in pairwise(shares):
        state = TeacherState.build(config)
        position = Position(seed=0, iteration=0, first=start, total=6)
        pixels, labels = tiny_pictures(tiny_config())
        rows = PairSampler(labels, 6, 0).batch_at(0, range(start, stop))[:1]
        part = training_batch(pixels[rows], labels[rows], position, config)
        assert part.erased is not None
        assert whole.erased is not None
        torch.testing.assert_close(part.erased, whole.erased[:, start:stop], rtol=0, atol=0)
        teacher_step(state, part, config)
        gradients.append([p.grad for p in state.teacher.parameters()])
        sizes.append((stop - start) / 6)

    def average(parameters: list[torch.nn.Parameter]) -> None:
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack([size * part for size, part in zip(sizes, parts, strict=True)]).sum(0)

    states = [TeacherState.build(config), TeacherState.build(config)]
    for rank, state in enumerate(states):
        teacher_step(state, teacher_batch(config, 0, rank, 2), config, reduce_grads=average)
    weights = [dict(state.teacher.named_parameters()) for state in states]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name

    mean = TeacherState.build(config)  # the mean loss of both parts, each by its own BatchNorm statistics, by hand
    erased, noise = whole.erased, Position(seed=0, iteration=0).uniform("dropout teacher", (6, 1, 16), "cpu")[:, 0]
    assert erased is not None
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in pairwise(shares):
        logits = mean.teacher.head.logits(mean.teacher(erased[0, start:stop])[1], noise[start:stop])
        total = total + losses.identity(logits, whole.labels[0, start:stop]) * (stop - start) / 6
    total.backward()
    for (name, parameter), *parts in zip(mean.teacher.named_parameters(), *gradients, strict=True):
        assert parameter.grad is not None
        together = torch.stack([size * part for size, part in zip(sizes, parts, strict=True)]).sum(0)
        torch.testing.assert_close(together, parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_dropout_and_smoothing_are_the_configurations() -> None:
    config = tiny_teacher_config()
    plain = TeacherState.build(replace(config, dropout=0.0))
    assert plain.teacher.head.dropout == 0
    same = [teacher_step(TeacherState.build(c), teacher_batch(c, 0), c)["L_id"].item() for c in (config, config)]
    other = replace(config, label_smoothing=0.3)
    assert same[0] == same[1] != teacher_step(TeacherState.build(other), teacher_batch(other, 0), other)["L_id"].item()
    assert teacher_step(plain, teacher_batch(config, 0), replace(config, dropout=0.0))["L_id"].item() != same[0]


def test_label_smoothing_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    log_p = [x - math.log(math.e + math.e**2 + 1) for x in (1.0, 2.0, 0.0)]
    expected = -(0.1 * log_p[0] + 0.8 * log_p[1] + 0.1 * log_p[2])  # smoothing 0.3: 0.7 + 0.1 on the label
    assert losses.identity(logits, torch.tensor([1]), 0.3) == pytest.approx(expected)
    assert losses.identity(logits, torch.tensor([1])) == pytest.approx(-log_p[1])


def test_images_without_identity_are_to_be_of_all_alike() -> None:
    config = tiny_teacher_config(dropout=0.0, label_smoothing=0.2)
    state, same = TeacherState.build(config), TeacherState.build(config)
    batch = teacher_batch(config, 0)
    unknown = batch.labels.clone()
    unknown[0, ::2] = -1
    images = batch.images if batch.erased is None else batch.erased
    logits = same.teacher.head.logits(same.teacher(images[0], track=True)[1]).detach()
    likely = logits.log_softmax(dim=1)
    of_identity = torch.stack([likely[row, label] for row, label in enumerate(batch.labels[0].tolist())])
    uniform = likely.mean(dim=1)  # cross-entropy with 1 / K, negated; smoothing mixes the two
    expected = torch.where(unknown[0] < 0, uniform, 0.8 * of_identity + 0.2 * uniform)
    metrics = teacher_step(state, replace(batch, labels=unknown), config)
    assert metrics["L_id"] == pytest.approx(-float(expected.mean()), rel=1e-5)
    right = (logits.argmax(dim=1) == batch.labels[0])[1::2]
    assert metrics["accuracy"] == pytest.approx(float(right.double().mean()))
    none = teacher_step(same, replace(batch, labels=torch.full_like(unknown, -1)), config)
    assert (none["accuracy"], float(none["L_id"]) > 0) == (0, True)


def test_a_trained_teacher_labels_generated_images() -> None:
    state = TeacherState.build(tiny_teacher_config())
    run(state, tiny_teacher_config(), 3)
    config = tiny_config()
    student = TrainState.build(config, teacher=state.teacher)
    student.iteration = 6
    before = {name: value.clone() for name, value in state.teacher.state_dict().items()}
    assert "L_prim" in train_step(student, tiny_batch(config, 6), config)
    for name, value in state.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    labels = state.teacher.labels(tiny_batch(config, 0).images.flatten(0, 1), groups=4)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(16, dtype=torch.float64))


def test_labels_are_in_full_precision_whatever_the_trunk_runs_in() -> None:
    teacher = TeacherState.build(tiny_teacher_config(step=StepConfig())).teacher
    torch.nn.init.normal_(teacher.head.classifier.weight)
    images = tiny_batch(tiny_config(step=StepConfig()), 0).images[0]
    with torch.autocast("cpu", torch.bfloat16):
        labels = teacher.labels(images, groups=1)
        _, features = teacher(torch.cat([images, images.flip(3)]), 2)
    expected = teacher.head.logits(features).softmax(dim=1).view(2, len(images), -1).mean(dim=0)
    assert features.dtype == labels.dtype == torch.float32
    assert torch.equal(labels, expected)


def test_appearance_encoder_may_start_from_the_teachers_trunk() -> None:
    state = TeacherState.build(tiny_teacher_config())
    run(state, tiny_teacher_config(), 2)
    config = tiny_config(trunk_from_teacher=True)
    started = TrainState.build(config, teacher=state.teacher)
    for name, value in state.teacher.trunk.state_dict().items():
        assert torch.equal(value, started.appearance_encoder.trunk.state_dict()[name]), name
    plain = TrainState.build(tiny_config(), teacher=state.teacher)
    assert_same_except(started, plain, "/networks/appearance_encoder/trunk")
    train_step(started, tiny_batch(config, 0), config)
    assert not torch.equal(started.appearance_encoder.trunk.conv1.weight, state.teacher.trunk.conv1.weight)

    TrainState.build(config, pretrained=False)  # a checkpoint follows
    with pytest.raises(ValueError, match="trunk_from_teacher = True and no teacher"):
        TrainState.build(config)
    wider = replace(config, network=replace(config.network, appearance_width=8))
    with pytest.raises(ValueError, match="the teacher's network is of other sizes"):
        TrainState.build(wider, teacher=state.teacher)


def assert_same_except(first: TrainState, second: TrainState, different: str) -> None:
    a, b = flat(first), flat(second)
    for path, value in a.items():
        same = torch.equal(value, b[path]) or bool((value.isnan() & b[path].isnan()).all())
        assert same or path.startswith(different), path
    assert any(not torch.equal(a[path], b[path]) for path in a if path.startswith(different))


# ----------------------------------------------------------------------------------------------------------------
# Schedule and configuration


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [(0, 0.1), (1, 0.1225), (20, 0.55), (39, 0.9775), (40, 1), (58, 1), (59, 0.1), (88, 0.1), (89, 0.01), (500, 0.01)],
)
def test_learning_rate_of_the_trunk(iteration: int, rate: float) -> None:
    config = tiny_teacher_config(lr=0.02, warmup_iterations=40, milestones=(60, 90))
    assert teacher_rate(config, iteration) == pytest.approx(0.02 * rate)
    assert teacher_rate(replace(config, warmup_iterations=0), 0) == 0.02


def test_presets_count_epochs() -> None:
    assert paper_teacher(751, 12_936) == TeacherConfig(num_classes=751)
    config = paper_teacher(702, 16_522, batch_size=64, lr=0.01)
    assert (config.iterations, config.warmup_iterations, config.milestones) == (15_489, 1_291, (10_326,))
    assert (config.batch_size, config.lr) == (64, 0.01)
    tiny_set = laptop_teacher(5, 3)
    assert tiny_set.iterations >= 1
    assert tiny_set.network == laptop(5).network
    assert laptop_teacher(5, 100, iterations=77, dropout=0.1).iterations == 77


def test_rescaled_runs_keep_every_share() -> None:
    long = laptop(40, iterations=1_000).rescaled(4_000)
    assert long == laptop(40, iterations=4_000)
    assert long.rescaled(1_000) == laptop(40, iterations=1_000)
    short = paper(751).rescaled(1_000)
    assert short.loss.teacher_warmup == Warmup(start=300, slope=0.05)
    assert short.loss.code_warmup.end(short.loss.cycle) == 340
    assert short.optim.milestones == (600, 900, 1_050)
    assert short == replace(paper(751), iterations=1_000, loss=short.loss, optim=short.optim)

    teacher = paper_teacher(10, 3_200).rescaled(600)  # 60 epochs of 100 iterations
    assert (teacher.iterations, teacher.warmup_iterations, teacher.milestones) == (600, 50, (400,))
    assert laptop_teacher(10, 640, iterations=600).rescaled(60) == laptop_teacher(10, 640, iterations=60)


def test_rescaling_to_nothing_still_gives_a_run() -> None:
    config = paper(751).rescaled(1)
    assert config.optim.milestones == (1,)
    assert config.loss.teacher_warmup.start == 0
    config = paper_teacher(751, 12_936).rescaled(1)
    assert (config.warmup_iterations, config.milestones) == (0, (1,))
    with pytest.raises(ValueError, match="iterations = 0: at least 1"):
        paper(751).rescaled(0)
    overridden = laptop(40, iterations=10, loss=LossConfig(prim=1.0))
    assert overridden.loss == LossConfig(prim=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "TeacherConfig.num_classes = 1"),
        ({"batch_size": 1}, "batch_size = 1: BatchNorm"),
        ({"iterations": 0}, "iterations = 0: at least 1"),
        ({"seed": -1}, "seed = -1"),
        ({"dropout": 1.0}, "dropout = 1.0: a probability"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"lr": 0.0}, "lr = 0.0: must be positive"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0"),
        ({"warmup_iterations": -1}, "warmup_iterations = -1"),
        ({"milestones": (5, 3)}, "milestones"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0"),
    ],
)
def test_nonsense_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_teacher_config(**change)


# ----------------------------------------------------------------------------------------------------------------
# Bad input and faults


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: replace(b, images=b.images.expand(4, -1, -1, -1, -1)), r"shape \(4, 6, 3, 24, 12\): \(1, B"),
        (lambda b: replace(b, images=b.images[..., :7]), r"\(1, B, 3, 24, 12\) is needed"),
        (lambda b: replace(b, images=b.images.float()), "batch.images is torch.float32"),
        (lambda b: replace(b, erased=b.erased * 255), "pass normalised images"),
        (lambda b: replace(b, images=b.images[:, :1], erased=None), "BatchNorm needs at least 2"),
        (lambda b: replace(b, labels=b.labels.expand(2, -1)), r"batch.labels has shape \(2, 6\): \(1, 6\) is needed"),
        (lambda b: replace(b, labels=b.labels + 3), "num_classes = 5 allows -1 to 4"),
        (lambda b: replace(b, labels=b.labels - 6), "batch.labels holds -6 to"),
        (lambda b: replace(b, position=replace(b.position, iteration=9)), "batch.position.iteration = 9"),
    ],
)
def test_bad_batches_are_refused_before_anything_changes(change, message: str) -> None:
    config = tiny_teacher_config()
    state, untouched = TeacherState.build(config), TeacherState.build(config)
    with pytest.raises(ValueError, match=message):
        teacher_step(state, change(teacher_batch(config, 0)), config)
    assert_same(state, untouched)


def test_state_and_configuration_must_belong_together(tmp_path: Path) -> None:
    config = tiny_teacher_config()
    state = TeacherState.build(config)
    with pytest.raises(ValueError, match="num_classes = 6, the state was built for 5"):
        teacher_step(state, teacher_batch(config, 0), replace(config, num_classes=6))
    with pytest.raises(ValueError, match="another configuration"):
        TeacherState.build(replace(config, num_classes=6)).load_state_dict(state.state_dict())
    with pytest.raises(ValueError, match="not a training state of this method: its keys"):
        state.load_state_dict(TrainState.build(tiny_config()).state_dict())
    missing = NetworkConfig(**{**vars(config.network), "pretrained": str(tmp_path / "none.pth")})
    with pytest.raises(FileNotFoundError):
        TeacherState.build(replace(config, network=missing))
    TeacherState.build(replace(config, network=missing), pretrained=False)


def test_non_finite_terms_are_named() -> None:
    config = tiny_teacher_config()
    state = TeacherState.build(config)
    with torch.no_grad():
        state.teacher.head.classifier.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"iteration 0: L_id is not finite"):
        teacher_step(state, teacher_batch(config, 0), config)
    with pytest.raises(FloatingPointError, match=r"iteration 0: L_id"):
        raise_fault(state)
