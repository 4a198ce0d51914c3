"""The smallest recipes that have all that a strong one is made of."""

from dataclasses import replace

from dgnet_core.dgnet.config import DGNetConfig, OptimConfig
from dgnet_core.learning.config import MetricConfig
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.config import TeacherConfig
from tests.helpers.tiny import tiny_config, tiny_teacher_config

METRIC = MetricConfig(triplet=1.0, circle=0.5, circle_scale=8.0)


def strong_network(**changes: object) -> NetworkConfig:
    return replace(tiny_config().network, **({"pooling": "gem", "neck": "bnneck"} | changes))


def strong_config(**overrides: object) -> DGNetConfig:
    fields = {
        "network": strong_network(),
        "loss": replace(tiny_config().loss, label_smoothing=0.1),
        "optim": OptimConfig(optimizer="adamw", appearance_lr=1e-4, warmup_iterations=2, cosine_end=12),
        "metric": METRIC,
        "ema": 0.6,
        "instances": 2,
    }
    return tiny_config(**(fields | overrides))


def strong_teacher(**overrides: object) -> TeacherConfig:
    fields = {
        "network": strong_network(bottleneck=0), "metric": METRIC, "ema": 0.6, "instances": 2, "optimizer": "adam",
        "label_smoothing": 0.1, "cosine_end": 12, "dropout": 0.0, "last_stride": 1, "lr": 1e-3, "batch_size": 8,
    }  # fmt: skip
    return tiny_teacher_config(**(fields | overrides))
