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


def identity(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of logits (N, K) against identities (N), batch mean: Eq. 3, 6 and 9.

    Args:
        logits: (N, K).
        labels: (N) in [0, K).
        smoothing: share of each label's weight that is spread evenly over all K identities.
        weights: (N) of each image's loss; None: 1.
    """
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()


def identity_or_uniform(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`identity`, where label -1 stands for the same probability of all identities (LSRO, Zheng et al., ICCV 2017).

    Args:
        logits: (N, K).
        labels: (N) in [-1, K).
        smoothing: as for `identity`; images of label -1 have none.
    """
    known = F.cross_entropy(logits, labels.clamp(min=0), label_smoothing=smoothing, reduction="none")
    return torch.where(labels < 0, -F.log_softmax(logits, dim=1).mean(dim=1), known).mean()


def discriminator_adversarial(fake: Sequence[Tensor], real: Sequence[Tensor], gan: GanType) -> tuple[Tensor, Tensor]:
    """Eq. 7 as the discriminator sees it, summed over scales: what generated and what real images add to it.

    Args:
        fake: scores (N, 1, h, w) of generated images at every scale.
        real: the same of real images.
        gan: lsgan, least squares against 0 and 1, or nsgan, the non-saturating logistic loss.
    """
    if gan == "nsgan":
        terms = [F.softplus(f).mean() for f in fake], [F.softplus(-r).mean() for r in real]
    else:
        terms = [f.square().mean() for f in fake], [(r - 1).square().mean() for r in real]
    return torch.stack(terms[0]).sum(), torch.stack(terms[1]).sum()


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


def triplet(features: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
    """Triplet loss with hard batch mining and soft margin, mean over anchors (Hermans et al., arXiv 1703.07737, Eq. 5).

    ln(1 + exp(d_p - d_n)) of the Euclidean distances to the farthest image of the anchor's identity and to the nearest
    one of another. An anchor that is its identity's only image has d_p = 0; without negatives it has no loss.

    Images without identity are negatives only.

    Args:
        features: (N, D).
        labels: identities (N); -1: none.
        anchors: rows of `features` (M) int64.
    """
    distances = torch.cdist(features[anchors], features, compute_mode="donot_use_mm_for_euclid_dist")
    same, other = _pairs(labels, anchors)
    farthest = distances.masked_fill(~same, 0.0).amax(dim=1)
    nearest = distances.masked_fill(~other, torch.inf).amin(dim=1)
    return F.softplus(farthest - nearest).mean()


def circle(features: Tensor, labels: Tensor, anchors: Tensor, margin: float, scale: float) -> Tensor:
    """Circle loss of pairs, mean over anchors (Sun et al., arXiv 2002.10857, Eq. 4 to 8).

    Similarities are cosines. An anchor without positives or without negatives has no loss. Images without identity are
    negatives only.

    Args:
        features: (N, D).
        labels: identities (N); -1: none.
        anchors: rows of `features` (M) int64.
        margin: m: positives should be more similar than 1 - m, negatives less than m.
        scale: gamma.
    """
    unit = F.normalize(features)
    similarity = unit[anchors] @ unit.T
    same, other = _pairs(labels, anchors)
    itself = anchors[:, None] == torch.arange(len(labels), device=labels.device)
    positive = -scale * (1 + margin - similarity).detach().clamp(min=0) * (similarity - (1 - margin))
    negative = scale * (similarity + margin).detach().clamp(min=0) * (similarity - margin)
    none = torch.finfo(similarity.dtype).min
    positives = positive.masked_fill(~same | itself, none).logsumexp(dim=1)
    negatives = negative.masked_fill(~other, none).logsumexp(dim=1)
    return F.softplus(positives + negatives).mean()


def _pairs(labels: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Which images are of each anchor's identity, and which of another (M, N); for an anchor of label -1 none are."""
    own = labels[anchors, None]
    return (own == labels) & (own >= 0), (own != labels) & (own >= 0)
