"""One iteration of the teacher, the usual re-id baseline: cross-entropy on the original images, and metric losses."""

from torch import Tensor

from dgnet_core.learning import losses
from dgnet_core.learning.batches import Batch, check_batch
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.precision import autocast, exact, layout_of
from dgnet_core.learning.schedule import fall, rise
from dgnet_core.learning.steps import ReduceGrads, clip, dropped_logits, keep_local, metric_terms, set_rate
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.state import TeacherState


def teacher_step(
    state: TeacherState, batch: Batch, config: TeacherConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration. Non-finite numbers are met as in `step.train_step`.

    Images of label -1, of people who do not exist, are to be given the same probability for all identities (LSRO).

    Args:
        state: changed in place.
        batch: what this rank trains on, (1, B) images; `batch.position.iteration` must be the state's.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks, so that training follows the mean loss of all ranks' batches.

    Returns:
        Scalars on the state's device, without a graph: the loss "L_id" in nats, "L_triplet" and "L_circle" if they
        have a weight, "accuracy", the share of the batch's people that is recognised in spite of dropout and erasing,
        and "grad_teacher", the L2 norm of the gradient before clipping.

    Raises:
        ValueError: the batch or the state does not fit the configuration; the state is unchanged.
        FloatingPointError: the loss or the gradient is not finite (CPU only).
    """
    teacher, head = state.teacher, state.teacher.head
    check_batch(
        batch, config, head.classifier.out_features, state.iteration, state.device, sets=1, labelled=1, lowest=-1
    )
    images = (batch.images if batch.erased is None else batch.erased)[0].contiguous(
        memory_format=layout_of(config.step)
    )
    labels = batch.labels[0].to(state.device, non_blocking=True)

    with autocast(config.step, state.device):
        compared, feature = map(exact, teacher(images, track=True))
    logits = dropped_logits(head, feature, 1, batch.position, "dropout teacher")
    all_known = bool((batch.labels[0] >= 0).all())
    identity = losses.identity if all_known else losses.identity_or_uniform
    terms = {"L_id": identity(logits, labels, config.label_smoothing)}
    loss = terms["L_id"]
    for name, weight, value in metric_terms(compared[None], labels[None], config.metric, batch.position):
        terms[name] = value
        loss = loss + weight * value
    state.optimizer.zero_grad()
    loss.backward()

    parameters = list(teacher.parameters())
    reduce_grads(parameters)
    gradient = clip(parameters, config.clip_norm)
    set_rate(state.optimizer, teacher_rate(config, state.iteration))
    state.optimizer.step()
    right = (logits.detach().argmax(dim=1) == labels).to(loss.dtype)
    accuracy = right.mean() if all_known else right.sum() / (labels >= 0).sum().clamp(min=1)
    metrics = {**{name: term.detach() for name, term in terms.items()}, "accuracy": accuracy, "grad_teacher": gradient}
    record_fault(state, metrics)
    state.move_averages(config.ema)
    state.iteration += 1
    return metrics


def teacher_rate(config: TeacherConfig, iteration: int) -> float:
    """Learning rate of the teacher's trunk: from a tenth up in a straight line, then down."""
    return config.lr * rise(config.warmup_iterations, iteration) * fall(config, iteration)


def teacher_settings(config: TeacherConfig, iteration: int) -> dict[str, float]:
    """The learning rate at a 0-based iteration."""
    return {"lr/trunk": teacher_rate(config, iteration)}
