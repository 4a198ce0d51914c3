"""What the release really runs: dropout in the labels, mixed running statistics, other first weights, shared labels."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dgnet_core.dgnet.config import DGNetConfig, RecipeConfig, paper, release
from dgnet_core.dgnet.losses import soft_label
from dgnet_core.dgnet.networks import AppearanceEncoder, pool_code, to_gray
from dgnet_core.dgnet.step import train_step
from dgnet_core.networks.resnet import Head
from dgnet_core.teacher.networks import Teacher
from tests.helpers.tiny import RAMPED, flat, tiny_batch, tiny_config, tiny_state, tiny_teacher


def test_the_preset_is_papers_but_for_what_the_release_really_runs() -> None:
    config = release(751)
    assert config.recipe == RecipeConfig(teacher_dropout=True, release_statistics=True)
    assert config.network.release_bottleneck
    plain = replace(config, recipe=RecipeConfig(), network=replace(config.network, release_bottleneck=False))
    assert plain == paper(751)
    assert release(5, iterations=7).iterations == 7


def test_bottlenecks_start_from_the_releases_weights() -> None:
    torch.manual_seed(0)
    head = Head(2048, 512, 10, 0.5, release_bottleneck=True)
    assert head.reduce is not None
    assert float(head.reduce.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert (head.norm.weight == 1).all()
    head = Head(2048, 512, 10, 0.5)
    assert head.reduce is not None
    assert float(head.reduce.weight.detach().std()) == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    assert float(head.norm.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    network = replace(tiny_config().network, release_bottleneck=True)
    encoder, teacher = AppearanceEncoder(network, 3), Teacher(network, 3)
    assert all((head.norm.weight == 1).all() for head in (encoder.prim, encoder.fine, teacher.head))


def test_the_teachers_output_is_shared_between_the_two_owners() -> None:
    teacher = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [1.0, 0.0, 0.0]])
    appearance, structure = torch.tensor([2, 1, 1]), torch.tensor([0, 1, 2])
    q = soft_label("owners", teacher, appearance, structure, 3)
    torch.testing.assert_close(q, torch.tensor([[1 / 3, 0, 2 / 3], [0, 1, 0], [0, 0.5, 0.5]]))
    config = tiny_config(recipe=RecipeConfig(soft_label="owners"))
    assert config.needs_teacher
    assert "L_prim" in train_step(tiny_state(config, RAMPED), tiny_batch(config, RAMPED), config)


def test_teachers_labels_with_dropout_by_hand() -> None:
    config = tiny_config()
    teacher = tiny_teacher(config).double().train()
    torch.nn.init.normal_(teacher.head.classifier.weight)
    x = torch.randn(3, 3, 24, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.rand(6, config.network.bottleneck, generator=torch.Generator().manual_seed(1))
    halves = [
        teacher.head.classifier(teacher(images)[1] * (drawn >= 0.5) / 0.5).softmax(dim=1)
        for images, drawn in ((x, noise[:3]), (x.flip(3), noise[3:]))
    ]
    torch.testing.assert_close(teacher.labels(x, 1, noise), (halves[0] + halves[1]) / 2)
    assert (teacher.labels(x, 1, noise) - teacher.labels(x, 1)).abs().max() > 0.01


def _stepped(
    config: DGNetConfig, iteration: int = RAMPED, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics and state of one iteration with a teacher whose labels differ."""
    state = tiny_state(config, iteration)
    assert state.teacher is not None
    torch.nn.init.normal_(state.teacher.head.classifier.weight, generator=torch.Generator().manual_seed(0))
    batch = tiny_batch(config, iteration)
    metrics = train_step(state, replace(batch, position=replace(batch.position, seed=seed)), config)
    return metrics, flat(state)


def test_the_teachers_dropout_changes_the_labels_and_nothing_else_of_an_iteration() -> None:
    network = replace(tiny_config().network, prim_dropout=0.0, fine_dropout=0.0)
    plain = tiny_config(network=network)
    dropped = replace(plain, recipe=RecipeConfig(teacher_dropout=True))
    labelled = {"L_prim", "grad_appearance"}
    without, with_it, other_draws = (_stepped(config, seed=seed)[0] for config, seed in (
        (plain, 0), (dropped, 0), (dropped, 1),
    ))  # fmt: skip
    assert {name for name, value in without.items() if value != with_it[name]} == labelled
    assert {name for name, value in with_it.items() if value != other_draws[name]} == labelled
    first, second = (_stepped(config, 0) for config in (plain, dropped))  # nothing is labelled yet
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(value, b[name]) or value.isnan().all() for name, value in a.items())


def _statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {path: value for path, value in state.items() if "running_" in path or "num_batches" in path}


@pytest.mark.parametrize("iteration", [0, RAMPED])
def test_running_statistics_follow_clean_erased_and_generated_images(iteration: int) -> None:
    plain = tiny_config()
    config = replace(plain, recipe=RecipeConfig(release_statistics=True))
    state = tiny_state(config, iteration)
    encoder, E_s, G = (
        copy.deepcopy(state.networks[name]) for name in ("appearance_encoder", "structure_encoder", "decoder")
    )
    assert isinstance(encoder, AppearanceEncoder)
    batch = tiny_batch(config, iteration)
    assert batch.erased is not None
    with torch.no_grad():  # ten passes, each of one batch
        a, b = batch.images[:2]
        crossed = [G(E_s(to_gray(s)), encoder(x)) for s, x in ((a, b), (b, a))]
        for images in (*batch.images, *batch.erased, *(crossed if iteration else [])):
            pooled = pool_code(encoder(images, track=True))
            encoder.prim(pooled, track=True)
            encoder.fine(pooled, track=True)
    metrics = train_step(state, batch, config)
    after = dict(state.appearance_encoder.named_buffers())
    for name, value in encoder.named_buffers():
        torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert int(after["trunk.bn1.num_batches_tracked"]) == (10 if iteration else 8)

    # What is learned is the same in every bit.
    plain_state = tiny_state(plain, iteration)
    expected, other = train_step(plain_state, tiny_batch(plain, iteration), plain), flat(plain_state)
    assert all(torch.equal(metrics[name], value) or value.isnan() for name, value in expected.items())
    ours = flat(state)
    for path, value in other.items():
        if path not in _statistics(other):
            assert torch.equal(ours[path], value) or (ours[path].isnan() & value.isnan()).all(), path
    assert any(not torch.equal(ours[path], value) for path, value in _statistics(other).items())
