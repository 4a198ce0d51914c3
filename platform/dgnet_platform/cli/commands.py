"""The commands: each reads its options, and only then imports what does the work.

PyTorch, Ray and MLflow take seconds to import. So --help, a wrong option, a refused setting and a store that is not
there are answered before that: the imports inside these functions are where the heavy modules begin.
"""

from collections.abc import Sequence

import tyro
from rich.console import Console

from dgnet_platform.cli.experiments import base_and_space, check_tables, open_stores, parse
from dgnet_platform.cli.options import (
    CompareGenerators,
    PaperTables,
    TrainDGNet,
    TrainGenerator,
    TrainTeacher,
    TuneMarket,
)
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.evaluation.config import EvaluateConfig, ExportConfig, GenerateConfig, MeasureConfig


def prepare_data(description: str | None, args: Sequence[str], console: Console) -> int:
    """Pack a data set into a store."""
    config = tyro.cli(PrepareConfig, args=args, description=description)
    from dgnet_platform.cli.prepare import prepare_store

    return prepare_store(config, console)


def train_teacher(description: str | None, args: Sequence[str], console: Console) -> int:
    """Train DG-Net's teacher."""
    options, experiment = parse(TrainTeacher, description, args)
    from dgnet_platform.cli.train import train_and_show

    return train_and_show(options, experiment, console)


def train_dgnet(description: str | None, args: Sequence[str], console: Console) -> int:
    """Train DG-Net."""
    options, experiment = parse(TrainDGNet, description, args)
    from dgnet_platform.cli.train import train_and_show

    return train_and_show(options, experiment, console)


def train_generator(description: str | None, args: Sequence[str], console: Console) -> int:
    """Train a generator that DG-Net is compared with."""
    options, experiment = parse(TrainGenerator, description, args)
    from dgnet_platform.cli.train import train_and_show

    return train_and_show(options, experiment, console)


def tune(description: str | None, args: Sequence[str], console: Console) -> int:
    """Search DG-Net's settings."""
    options = tyro.cli(TuneMarket, args=args, description=description)
    base, space = base_and_space(options)
    from dgnet_platform.cli.tune import search_and_show

    return search_and_show(options, base, space, console)


def paper_tables(description: str | None, args: Sequence[str], console: Console) -> int:
    """Make the paper's tables."""
    options = tyro.cli(PaperTables, args=args, description=description)
    check_tables(options)
    from dgnet_platform.cli.tables import tables_and_show

    return tables_and_show(options, console)


def evaluate(description: str | None, args: Sequence[str], console: Console) -> int:
    """Evaluate trained networks."""
    config = tyro.cli(EvaluateConfig, args=args, description=description, config=(tyro.conf.UseAppendAction,))
    open_stores(*config.store)
    from dgnet_platform.cli.evaluate import evaluate_and_show

    return evaluate_and_show(config, console)


def export(description: str | None, args: Sequence[str], console: Console) -> int:
    """Export the network that describes people."""
    config = tyro.cli(ExportConfig, args=args, description=description)
    from dgnet_platform.cli.export import export_and_show

    return export_and_show(config, console)


def generate(description: str | None, args: Sequence[str], console: Console) -> int:
    """Make a set of generated pictures."""
    config = tyro.cli(GenerateConfig, args=args, description=description)
    open_stores(config.store)
    from dgnet_platform.cli.generate import generate_and_show

    return generate_and_show(config, console)


def compare(description: str | None, args: Sequence[str], console: Console) -> int:
    """Compare generators."""
    options = tyro.cli(CompareGenerators, args=args, description=description)
    open_stores(options.store)
    from dgnet_platform.cli.compare import compare_and_show

    return compare_and_show(options, console)


def measure(description: str | None, args: Sequence[str], console: Console) -> int:
    """Measure how good generated people are."""
    config = tyro.cli(MeasureConfig, args=args, description=description)
    open_stores(config.store)
    from dgnet_platform.cli.measure import measure_and_show

    return measure_and_show(config, console)
