"""One rank's part in training a run: its state, and the data that its next iteration sees."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch, PairSampler, Position, share
from dgnet_core.learning.config import MethodConfig
from dgnet_core.methods import build, method_of
from dgnet_core.networks.batch_norm import synchronised
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.rarity import rarity
from dgnet_platform.training.collectives import average_gradients, average_statistics, ranks, sum_over_ranks


class Learner:
    """Trains whatever method a configuration names."""

    def __init__(
        self, config: MethodConfig, images: ImageSet, device: torch.device, teacher: Teacher | None = None
    ) -> None:
        """Build the state before iteration 0.

        Args:
            config: the method and its recipe.
            images: the training set; moved to the device if it fits there.
            device: where this rank trains.
            teacher: for configurations that need one.

        Raises:
            ValueError, FileNotFoundError, RuntimeError: as `methods.build` and `batches.share`.
        """
        rank, world_size = ranks()
        if config.step.graph and world_size > 1:
            raise ValueError(
                f"step.graph = True with {world_size} workers: the averages over workers are not captured; train with"
                " one, or set step.graph to False"
            )
        self.config = config
        self._method = method_of(config)
        self._device = device
        self._images = images.to(device) if device.type != "cpu" and images.fits(device) else images
        alone = world_size == 1 or config.batch_norm != "synchronised"
        self._reduce_sums = None if alone else sum_over_ranks  # one rank has PyTorch's own, faster BatchNorm
        self._places = share(config.batch_size, rank, world_size)
        self._sampler = PairSampler(
            images.labels, config.batch_size, config.seed, config.instances, rarity(images, config.partners)
        )
        self.share = len(self._places) / config.batch_size
        """This rank's part of the global batch, in (0, 1]."""
        self.images_a_step = len(self._method.sets) * config.batch_size
        """Images that an iteration trains on, over all ranks."""
        self.state = build(config, device, teacher=teacher)
        """What is trained; the same on every rank after `advance`."""

    def advance(self) -> dict[str, Tensor]:
        """One iteration, after which all ranks hold the same state.

        Returns:
            Its metrics on this rank's part of the batch, on the device.

        Raises:
            FloatingPointError: a loss or gradient is not finite (CPU only).
        """
        batch = self._batch(self.state.iteration)
        with synchronised(self._reduce_sums):
            metrics = self._method.step(self.state, batch, self.config, reduce_grads=self._reduce)
        average_statistics(self.state, self.share, synchronised=self._reduce_sums is not None)
        return metrics

    def images_for_statistics(self) -> Iterator[Tensor]:
        """Whole batches (B, 3, H, W) as identity losses see them: the same ones whenever and on whichever rank."""
        config = self.config
        for iteration in range(config.precise_batches):
            rows = self._sampler.batch_at(iteration)[:1]
            position = Position(seed=config.seed, iteration=iteration)
            pixels = self._images.images[rows.to(self._images.images.device)].to(self._device)
            batch = training_batch(pixels, self._images.labels[rows], position, config)
            yield (batch.images if batch.erased is None else batch.erased)[0]

    def settings(self, iteration: int) -> dict[str, float]:
        """Loss weights and learning rates at a 0-based iteration."""
        return self._method.settings(self.config, iteration)

    def _batch(self, iteration: int) -> Batch:
        """This rank's part of an iteration's batch, from pictures on any device."""
        config, sets = self.config, self._method.sets
        rows = self._sampler.batch_at(iteration, self._places, positives=self._method.positives)
        position = Position(seed=config.seed, iteration=iteration, first=self._places.start, total=config.batch_size)
        pictures = self._images.images
        pixels = pictures[rows[list(sets)].to(pictures.device)].to(self._device, non_blocking=True)
        labelled = [index for index in sets if index < 2]  # positives have the labels of a and b
        joints = self._images.joints if self._method.posed else None
        if joints is not None:
            joints = joints[rows[list(sets)]].to(self._device, non_blocking=True)
        return training_batch(pixels, self._images.labels[rows[labelled]], position, config, joints)

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        average_gradients(parameters, self.share)
