"""Which tables there are: read before anything heavy is imported."""

from typing import Literal

TableName = Literal[
    "ablation",
    "labels",
    "transfer",
    "sensitivity",
    "warmup",
    "structure",
    "strong",
    "settings",
    "generators",
    "state_of_the_art",
]
"""Tables of the paper, and some in its manner."""
