"""A search's study of eight trials."""

from pathlib import Path

from dgnet_core.dgnet.config import laptop
from dgnet_platform.search.space import Space
from dgnet_platform.search.study import Study

BASE = laptop(10, iterations=400)
SPACE = Space.default(BASE)
IDENTITY = {"space": dict(SPACE.dimensions), "seed": 3}


def opened(folder: Path, **overrides) -> Study:
    arguments = {"name": "search", "identity": IDENTITY, "space": SPACE, "base": BASE, "seed": 3} | overrides
    study = Study(folder, **arguments)
    if not study.target:
        study.set_target(8)
    return study
