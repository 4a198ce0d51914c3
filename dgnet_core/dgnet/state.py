"""DG-Net's training state."""

from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.graphed import Graphs, check_graph
from dgnet_core.dgnet.networks import AppearanceEncoder, Decoder, Discriminator, StructureEncoder
from dgnet_core.learning.precision import dtype_of
from dgnet_core.learning.state import State, average_of, no_fault
from dgnet_core.learning.steps import to_device, trunk_and_heads
from dgnet_core.networks.resnet import load_imagenet
from dgnet_core.teacher.networks import Teacher


@dataclass(kw_only=True, eq=False)
class TrainState(State):
    """DG-Net's state, and the frozen teacher beside it."""

    teacher: Teacher | None
    """Labels generated images for L_prim; not part of the checkpoint, for it never changes."""
    graphs: Graphs = field(default_factory=Graphs)
    """The captured iterations, where `StepConfig.graph` asks for them."""

    @classmethod
    def build(
        cls,
        config: DGNetConfig,
        device: torch.device | str = "cpu",
        *,
        teacher: Teacher | None = None,
        pretrained: bool = True,
    ) -> Self:
        """The state before iteration 0: a pure function of the configuration.

        Args:
            config: the run.
            device: where the networks live.
            teacher: trained on the same identities; may be None for recipes that need none.
            pretrained: load what `config.network.pretrained` names, or the teacher's trunk if `trunk_from_teacher`;
                False when a checkpoint will be loaded anyway.

        Raises:
            ValueError: the teacher knows another number of identities, its trunk is asked for and missing or of other
                sizes, or `step.graph` on a device without graphs.
            FileNotFoundError, RuntimeError: the ImageNet weights are not to be had (see load_imagenet).
        """
        check_graph(config.step, device)
        if teacher is not None and teacher.head.classifier.out_features != config.num_classes:
            raise ValueError(
                f"the teacher knows {teacher.head.classifier.out_features} identities, the training set has"
                f" {config.num_classes}: train the teacher on the same training set"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = config.network
            appearance = AppearanceEncoder(network, config.num_classes)
            structure, decoder, discriminator = StructureEncoder(network), Decoder(network), Discriminator(network)
        if pretrained and not config.trunk_from_teacher:
            load_imagenet(appearance.trunk, network)
        if teacher is not None:
            teacher.requires_grad_(False).train()
        for net in (appearance, structure, decoder, discriminator, teacher):
            if net is not None:
                to_device(net, config.step, device)
        if pretrained and config.trunk_from_teacher:
            _load_trunk(appearance.trunk, teacher)
        optim = config.optim
        adam: dict[str, Any] = {
            "betas": optim.adam_betas, "weight_decay": optim.weight_decay, "fused": True,
            "capturable": config.step.graph,
        }  # fmt: skip

        def rate(lr: float) -> float | Tensor:  # a tensor can change between a graph's replays
            return torch.tensor(lr, device=device) if config.step.graph else lr

        return cls(
            networks={
                "appearance_encoder": appearance,
                "structure_encoder": structure,
                "decoder": decoder,
                "discriminator": discriminator,
            },
            optimizers={
                "appearance_optimizer": trunk_and_heads(
                    appearance.trunk,
                    [appearance.prim, appearance.fine, *([appearance.gem] if appearance.gem is not None else [])],
                    kind=optim.optimizer,
                    lr=rate(optim.appearance_lr),
                    head_lr_factor=optim.head_lr_factor,
                    momentum=optim.momentum,
                    weight_decay=optim.weight_decay,
                ),
                "generator_optimizer": torch.optim.Adam(
                    [*structure.parameters(), *decoder.parameters()], lr=rate(optim.generator_lr), **adam
                ),
                "discriminator_optimizer": torch.optim.Adam(
                    discriminator.parameters(), lr=rate(optim.discriminator_lr), **adam
                ),
            },
            memory={"identity_level": torch.full((2,), torch.nan, dtype=dtype_of(config.step), device=device)},
            averages={"appearance_encoder": average_of(appearance)} if config.ema else {},
            fault=no_fault(device),
            teacher=teacher,
        )

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """As `State.load_state_dict`; graphs are captured anew, for optimisers load into other tensors."""
        super().load_state_dict(saved)
        self.graphs.clear()

    @property
    def appearance_encoder(self) -> AppearanceEncoder:
        """E_a, with the re-id heads."""
        return cast(AppearanceEncoder, self.networks["appearance_encoder"])

    @property
    def describing_encoder(self) -> AppearanceEncoder:
        """What describes people: the moving average of E_a where there is one."""
        return cast(AppearanceEncoder, self.describing("appearance_encoder"))

    @property
    def structure_encoder(self) -> StructureEncoder:
        """E_s."""
        return cast(StructureEncoder, self.networks["structure_encoder"])

    @property
    def decoder(self) -> Decoder:
        """G."""
        return cast(Decoder, self.networks["decoder"])

    @property
    def discriminator(self) -> Discriminator:
        """D."""
        return cast(Discriminator, self.networks["discriminator"])

    @property
    def appearance_optimizer(self) -> torch.optim.Optimizer:
        """Of E_a."""
        return self.optimizers["appearance_optimizer"]

    @property
    def generator_optimizer(self) -> torch.optim.Optimizer:
        """Adam on E_s and G."""
        return self.optimizers["generator_optimizer"]

    @property
    def discriminator_optimizer(self) -> torch.optim.Optimizer:
        """Adam on D."""
        return self.optimizers["discriminator_optimizer"]

    @property
    def identity_level(self) -> Tensor:
        """(2) fast and slow running mean of the identity loss on real images; NaN before the first iteration."""
        return self.memory["identity_level"]


def _load_trunk(trunk: nn.Module, teacher: Teacher | None) -> None:
    if teacher is None:
        raise ValueError(
            "trunk_from_teacher = True and no teacher: give TrainState.build a trained one, or set trunk_from_teacher"
            " to False and network.pretrained to what else the appearance encoder should start from"
        )
    try:
        trunk.load_state_dict(teacher.trunk.state_dict())
    except RuntimeError as error:
        raise ValueError(f"trunk_from_teacher = True, but the teacher's network is of other sizes: {error}") from error
