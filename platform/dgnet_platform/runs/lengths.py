"""How long a run of DG-Net is for a data set: in iterations, in epochs, and beside the paper's."""

from dataclasses import replace

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_platform.errors import ExperimentError

PAPER_BATCH, PAPER_EPOCHS = 8, 100_000 * 8 / 12_936
"""The paper's run sees each of Market-1501's pictures 61.8 times."""
PUBLISHED = {"market1501": 100_000, "msmt17": 150_000}
"""Iterations by data set that the authors state (the paper; NVlabs/DG-Net, issue 28)."""
FAR = 2.0
"""So many times more or fewer epochs than the paper's are worth a warning."""
RATE_WARMUP_EPOCHS = 5
"""In which rates rise to those of a larger batch (Goyal et al., 2017, section 2.2)."""


def fitting_iterations(dataset: str, images: int) -> int:
    """Length of the paper's run on a data set: what its authors state, or as many epochs as on Market-1501.

    Args:
        dataset: its name in the store.
        images: pictures of its training split.
    """
    if dataset in PUBLISHED:
        return PUBLISHED[dataset]
    exact = iterations_of(PAPER_EPOCHS, images, PAPER_BATCH)
    return round(exact, -3) if exact >= 10_000 else exact


def iterations_of(epochs: float, images: int, batch_size: int) -> int:
    """So many epochs in iterations, at least 1.

    Raises:
        ExperimentError: no positive number.
    """
    if not 0 < epochs < float("inf"):
        raise ExperimentError(f"--epochs {epochs:g}: must be positive and finite")
    return max(1, round(epochs * images / batch_size))


def by_linear_rule(model: DGNetConfig, batch_size: int, images: int) -> DGNetConfig:
    """The same run with batches of another size by the linear rule (Goyal et al., arXiv 1706.02677, section 2.1).

    It has as many epochs, and all learning rates in proportion to the batch. With larger batches the appearance
    encoder's rise over the first 5 epochs, a tenth of the run at most.

    Args:
        model: the run as it would be.
        batch_size: images in its batches instead.
        images: pictures that it trains on.

    Raises:
        ExperimentError: a batch without images.
    """
    if batch_size < 1:
        raise ExperimentError(f"--linear-batch-size {batch_size}: must be 1 or more")
    factor = batch_size / model.batch_size
    model = replace(model.rescaled(max(1, round(model.iterations / factor))), batch_size=batch_size)
    warmup = min(iterations_of(RATE_WARMUP_EPOCHS, images, batch_size), model.iterations // 10) if factor > 1 else 0
    optim = replace(
        model.optim,
        warmup_iterations=max(model.optim.warmup_iterations, warmup),
        **{name: factor * getattr(model.optim, name) for name in ("appearance_lr", "generator_lr", "discriminator_lr")},
    )
    return replace(model, optim=optim)


def remarks(model: DGNetConfig, preset: DGNetConfig, images: int) -> list[str]:
    """What is unusual about a run's length and batches, and what would help; nothing is changed.

    Args:
        model: the run's.
        preset: of its preset, at the run's length.
        images: pictures that it trains on.
    """
    found: list[str] = []
    epochs = model.iterations * model.batch_size / images
    if not 1 / FAR <= epochs / PAPER_EPOCHS <= FAR:
        found.append(
            f"{epochs:.1f} epochs are far from the paper's {PAPER_EPOCHS:.0f}: --epochs {PAPER_EPOCHS:.0f} makes it"
            f" {iterations_of(PAPER_EPOCHS, images, model.batch_size):,} iterations"
        )
    factor = model.batch_size / preset.batch_size
    if factor != 1 and model.optim.appearance_lr == preset.optim.appearance_lr:
        found.append(
            f"batches of {model.batch_size} at the learning rates of {preset.batch_size} are another recipe:"
            f" --linear-batch-size {model.batch_size} keeps epochs and multiplies rates (Goyal et al., 2017)"
        )
    return found
