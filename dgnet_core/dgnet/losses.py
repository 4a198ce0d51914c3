"""DG-Net's own losses: the teacher's soft labels and L_prim."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.dgnet.config import FeedConfig, SoftLabel


def soft_label(style: SoftLabel, teacher: Tensor | None, appearance: Tensor, structure: Tensor, classes: int) -> Tensor:
    """Target distribution q (N, K) of L_prim for generated images.

    Args:
        style: see RecipeConfig.soft_label; not "none".
        teacher: the teacher's labels (N, K), for "dynamic", "pseudo" and "owners".
        appearance: identity (N) that the appearance was taken from.
        structure: identity (N) that the structure was taken from.
        classes: K.
    """
    dtype = torch.float64 if teacher is not None and teacher.dtype == torch.float64 else torch.float32
    if style == "dynamic":
        assert teacher is not None
        return teacher
    if style == "pseudo":
        assert teacher is not None
        return F.one_hot(teacher.argmax(dim=1), classes).to(dtype)
    if style == "owners":
        assert teacher is not None
        owners = F.one_hot(appearance, classes) + F.one_hot(structure, classes) > 0
        shares = (teacher + torch.finfo(dtype).tiny) * owners  # even where the teacher gives both of them nothing
        return shares / shares.sum(dim=1, keepdim=True)
    if style == "uniform":
        return torch.full((len(appearance), classes), 1 / classes, dtype=dtype, device=appearance.device)
    if style == "two_label":
        return (F.one_hot(appearance, classes) + F.one_hot(structure, classes)).to(dtype) / 2
    assert style == "appearance"
    return F.one_hot(appearance, classes).to(dtype)


def fed_weights(feed: FeedConfig, share: float | Tensor, teacher: Tensor | None, draws: Tensor | None) -> Tensor | None:
    """Weights (N) of generated pictures in L_prim and L_fine; None: all are 1.

    Args:
        feed: see FeedConfig.
        share: of the pictures that feed, at this iteration.
        teacher: the teacher's probabilities (N, K), where its confidence decides.
        draws: (N) in [0, 1), where the share is less than 1.
    """
    weights = None if draws is None else (draws < share).to(draws.dtype)
    if feed.confidence == "all":
        return weights
    assert teacher is not None
    confidence = teacher.amax(dim=1)
    if feed.confidence == "filter":
        confidence = (confidence >= feed.least_confidence).to(confidence.dtype)
    return confidence if weights is None else confidence * weights


def prim(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 8: KL divergence in nats of f_prim's prediction (logits, N x K) from the target q (N, K), batch mean.

    Args:
        logits: (N, K).
        target: (N, K).
        weights: (N) of each picture's divergence; None: 1.
    """
    if weights is None:
        return F.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")
    return (weights * F.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)).mean()
