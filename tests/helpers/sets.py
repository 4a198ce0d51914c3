"""Generated sets: networks for them, the command line, and what lies in a folder."""

from pathlib import Path

from dgnet_platform.evaluation.generate import GenerateConfig
from tests.helpers.tiny import small_config

CONFIG = small_config(12)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(config: GenerateConfig) -> list[str]:
    names = ("checkpoint", "store", "out", "per_image", "split", "seed", "batch_size", "quality", "workers", "threads")
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
