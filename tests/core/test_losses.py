"""Losses and soft labels by hand."""

import math

import pytest
import torch

from dgnet_core.dgnet.losses import prim, soft_label
from dgnet_core.learning import losses


def test_losses_by_hand() -> None:
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0]])
    assert losses.image_l1(a, b) == losses.code_l1(a, b) == 1.5
    even = torch.zeros(2, 4)
    assert losses.identity(even, torch.tensor([0, 3])) == pytest.approx(math.log(4))
    fake, real = [torch.tensor([0.5, -0.5])], [torch.tensor([1.0, 0.0])]
    assert sum(losses.discriminator_adversarial(fake, real, "lsgan")) == pytest.approx(0.25 + 0.5)
    assert losses.generator_adversarial(fake, "lsgan") == pytest.approx(2 * (0.25 + 2.25) / 2)
    fake, real = [torch.tensor([2.0, -1.0]), torch.tensor([0.0])], [torch.tensor([3.0, 0.0]), torch.tensor([-1.0])]
    says_real = lambda score: -math.log(1 / (1 + math.exp(-score)))  # noqa: E731  minus log probability of "real"
    fooled = (says_real(2) + says_real(-1)) / 2 + says_real(0)
    seen_through = (says_real(-2) + says_real(1)) / 2 + says_real(0)
    recognised = (says_real(3) + says_real(0)) / 2 + says_real(-1)
    assert losses.generator_adversarial(fake, "nsgan") == pytest.approx(fooled)
    assert sum(losses.discriminator_adversarial(fake, real, "nsgan")) == pytest.approx(seen_through + recognised)
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
