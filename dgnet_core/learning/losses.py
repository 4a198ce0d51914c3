"""Loss terms that several methods share, one function each."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.learning.config import GanType


def image_l1(x: Tensor, generated: Tensor) -> Tensor:
    """Mean absolute difference of two image batches: Eq. 1 and 2, and the cycle term of the release.

    Args:
        x: real images (N, 3, H, W), normalised.
        generated: what should equal them, of the same shape.
    """
    return F.l1_loss(generated, x)


def code_l1(code: Tensor, read_back: Tensor) -> Tensor:
    """Mean absolute difference of a code and the one read back from a generated image: Eq. 4 and 5.

    Args:
        code: appearance codes (N, C, 4), or structure codes (N, C_s, H / 4, W / 4).
        read_back: of the same shape.
    """
    return F.l1_loss(read_back, code)


def identity(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of logits (N, K) against identities (N): Eq. 3, 6 and 9.

    Args:
        logits: (N, K).
        labels: (N) in [0, K).
        smoothing: share of each label's weight that is spread evenly over all K identities.
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def discriminator_adversarial(fake: Sequence[Tensor], real: Sequence[Tensor], gan: GanType) -> Tensor:
    """Eq. 7 as the discriminator sees it, summed over scales.

    Args:
        fake: scores (N, 1, h, w) of generated images at every scale.
        real: the same of real images.
        gan: lsgan, least squares against 0 and 1, or nsgan, the non-saturating logistic loss.
    """
    if gan == "nsgan":
        terms = [F.softplus(f).mean() + F.softplus(-r).mean() for f, r in zip(fake, real, strict=True)]
    else:
        terms = [f.square().mean() + (r - 1).square().mean() for f, r in zip(fake, real, strict=True)]
    return torch.stack(terms).sum()


def generator_adversarial(fake: Sequence[Tensor], gan: GanType) -> Tensor:
    """Eq. 7 as the generator sees it, summed over scales; lsgan counts twice, as in the release.

    Args:
        fake: scores (N, 1, h, w) of generated images at every scale.
        gan: as for the discriminator.
    """
    if gan == "nsgan":
        return torch.stack([F.softplus(-f).mean() for f in fake]).sum()
    return torch.stack([2 * (f - 1).square().mean() for f in fake]).sum()


def against(scores: Tensor, label: float, gan: GanType) -> Tensor:
    """How far scores are from one label, mean over all: what the compared generators' adversarial losses consist of.

    Args:
        scores: of any shape; logits for nsgan.
        label: 1 for real, 0 for fake, or smoothed in between.
        gan: lsgan, squared difference, or nsgan, binary cross-entropy in nats.
    """
    if gan == "nsgan":
        return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))
    return (scores - label).square().mean()


def gradient_penalty(real_scores: Sequence[Tensor], images: Tensor) -> Tensor:
    """Squared norm of each scale's gradient at the real images, mean over the batch, summed over scales (release).

    Args:
        real_scores: (N, 1, h, w) at every scale.
        images: what the discriminator was given, (N, 3, H, W), requiring gradients.
    """
    terms = []
    for scores in real_scores:
        # Of the mean, as all that ranks descend from: a norm over all ranks' images then passes on their gradients too.
        (gradient,) = torch.autograd.grad(scores.mean(), images, create_graph=True)
        terms.append((gradient * scores.numel()).square().sum(dim=(1, 2, 3)).mean())
    return torch.stack(terms).sum()
