"""What rows train: each function makes an experiment from the run of the paper."""

from collections.abc import Callable
from dataclasses import replace

from dgnet_core.dgnet.config import SoftLabel
from dgnet_core.learning.config import Partners, Warmup
from dgnet_core.networks.config import StructureInput
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment
from dgnet_platform.runs.presets import generator_of, teacher_of

Change = Callable[[DGNetExperiment], AnyExperiment]
"""Makes what a row trains from the paper's run on the row's data, of the row's seed."""


def full(experiment: DGNetExperiment) -> DGNetExperiment:
    """The paper's run itself."""
    return experiment


def baseline(experiment: DGNetExperiment) -> AnyExperiment:
    """The teacher, which is the paper's baseline."""
    return teacher_of(experiment)


def lsgan(experiment: DGNetExperiment) -> AnyExperiment:
    """LSGAN, which draws people who do not exist."""
    return generator_of(experiment, "lsgan")


def without_feeding(experiment: DGNetExperiment) -> DGNetExperiment:
    """Generated pictures never reach the re-id heads."""
    return _recipe(experiment, online_feeding=False)


def without_generated_identity(experiment: DGNetExperiment) -> DGNetExperiment:
    """No identity loss on generated pictures (Eq. 6)."""
    return _loss(experiment, generated_identity=0.0)


def without_identity(experiment: DGNetExperiment) -> DGNetExperiment:
    """No identity loss on real and generated pictures (Eq. 3 and 6), by the paper's equations.

    L_prim and L_fine (Eq. 8 and 9), which train the same heads on generated pictures from the warm-up on, stay.

    The release detaches the appearance code before the decoder. Without identity losses the appearance encoder would
    then have no gradient before the warm-up, so this row does not detach it.
    """
    experiment = _loss(experiment, identity=0.0, positive_identity=0.0, generated_identity=0.0)
    return _recipe(experiment, detach_appearance=False)


def labelled(style: SoftLabel) -> Change:
    """L_prim (Eq. 8) with other labels for generated pictures."""
    return lambda experiment: _recipe(experiment, soft_label=style)


def fine_weight(alpha: float) -> Change:
    """lambda_fine = alpha lambda_prim."""
    return lambda experiment: _loss(experiment, alpha=alpha)


def warm_until(share: float) -> Change:
    """Ramped weights stay 0 for a share of the run; their slope stays."""

    def change(experiment: DGNetExperiment) -> DGNetExperiment:
        start, loss = round(share * experiment.model.iterations), experiment.model.loss
        code, teacher = (Warmup(start=start, slope=w.slope) for w in (loss.code_warmup, loss.teacher_warmup))
        return _loss(experiment, code_warmup=code, teacher_warmup=teacher)

    return change


def structure_from(read: StructureInput, *, negatives: bool) -> Change:
    """What the structure encoder reads of a picture."""

    def change(experiment: DGNetExperiment) -> DGNetExperiment:
        model = experiment.model
        model = replace(model, network=replace(model.network, structure_input=read))
        return _recipe(replace(experiment, model=model), structure_negatives=negatives)

    return change


def silent_code(experiment: DGNetExperiment) -> DGNetExperiment:
    """L_code1 (Eq. 4) teaches no network, as in the release."""
    return _recipe(experiment, code_teaches_decoder=False)


def fed(**changes: object) -> Change:
    """Other generated pictures feed the re-id heads: fields of FeedConfig."""

    def change(experiment: DGNetExperiment) -> DGNetExperiment:
        model = experiment.model
        return replace(experiment, model=replace(model, feed=replace(model.feed, **changes)))

    return change


def partnered(partners: Partners) -> Change:
    """Batch b, whose images give structures to batch a, is drawn otherwise."""
    return lambda experiment: replace(experiment, model=replace(experiment.model, partners=partners))


def _loss(experiment: DGNetExperiment, **changes: object) -> DGNetExperiment:
    model = experiment.model
    return replace(experiment, model=replace(model, loss=replace(model.loss, **changes)))


def _recipe(experiment: DGNetExperiment, **changes: object) -> DGNetExperiment:
    model = experiment.model
    return replace(experiment, model=replace(model, recipe=replace(model.recipe, **changes)))
