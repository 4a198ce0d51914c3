"""DG-Net's own losses: the teacher's soft labels and L_prim."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.dgnet.config import SoftLabel


def soft_label(style: SoftLabel, teacher: Tensor | None, appearance: Tensor, structure: Tensor, classes: int) -> Tensor:
    """Target distribution q (N, K) of L_prim for generated images.

    Args:
        style: see RecipeConfig.soft_label; not "none".
        teacher: the teacher's labels (N, K), for "dynamic" and "pseudo".
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
    if style == "uniform":
        return torch.full((len(appearance), classes), 1 / classes, dtype=dtype, device=appearance.device)
    if style == "two_label":
        return (F.one_hot(appearance, classes) + F.one_hot(structure, classes)).to(dtype) / 2
    assert style == "appearance"
    return F.one_hot(appearance, classes).to(dtype)


def prim(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 8: KL divergence in nats of f_prim's prediction (logits, N x K) from the target q (N, K), batch mean."""
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")
