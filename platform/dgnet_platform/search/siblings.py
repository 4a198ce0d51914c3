"""Runs beside the study's trials."""

from dataclasses import dataclass

from dgnet_core.dgnet.config import DGNetConfig


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """A run of a search that is no trial of its study: all that is known of it is in its folder."""

    name: str
    """Of its folder, after the search's."""
    model: DGNetConfig
    """What it trains."""
