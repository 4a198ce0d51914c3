"""What a command of tables comes down to: which runs, of which seeds, and what they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment, TaughtExperiment, TeacherExperiment
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.search.sharing import Costs, SharingPlan, plan_sharing
from dgnet_platform.tables.offline import offline_location
from dgnet_platform.tables.rows import Row, Table

Base = Callable[[str, bool], DGNetExperiment]
"""The paper's run on a store, by its location; held out: identities are kept out of training."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a row trains with one seed."""

    table: Table
    row: Row
    seed: int
    experiment: AnyExperiment
    tested_on: str
    """Location of the store that has its query and gallery."""
    generator: DGNetExperiment | None = None
    """What draws pictures of the store that it trains on, which is made when this is trained."""


@dataclass(frozen=True, kw_only=True)
class TablesPlan:
    """What is trained and compared."""

    tables: tuple[Table, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    stores: dict[str, Store]
    """By their locations, the first being --data's."""

    @property
    def own_store(self) -> Store:
        """--data's."""
        return next(iter(self.stores.values()))

    @property
    def all_experiments(self) -> list[AnyExperiment]:
        """All that is trained, in the order in which it can be."""
        return [*self.teachers, *self.experiments, *self.offline]

    @cached_property
    def experiments(self) -> list[AnyExperiment]:
        """What DG-Nets are trained, each once; row by row, so that all seeds train their prefixes at once."""
        own = [cell.experiment for cell in self.cells if isinstance(cell.experiment, TaughtExperiment)]
        return list(dict.fromkeys([*own, *self.generators.values()]))

    @cached_property
    def generators(self) -> dict[str, DGNetExperiment]:
        """What draws the pictures of stores that are made on the way, by their locations."""
        return {cell.experiment.data: cell.generator for cell in self.cells if cell.generator is not None}

    @cached_property
    def offline(self) -> list[AnyExperiment]:
        """What is trained on generated pictures, once they are drawn."""
        return list(dict.fromkeys(cell.experiment for cell in self.cells if cell.generator is not None))

    @cached_property
    def teachers(self) -> list[TeacherExperiment]:
        """What teachers are trained: those that rows consist of, and those that runs need."""
        own = [
            cell.experiment
            for cell in self.cells
            if not isinstance(cell.experiment, TaughtExperiment) and cell.generator is None
        ]
        needed = [teacher for experiment in self.experiments if (teacher := teacher_needed(experiment)) is not None]
        return cast(list[TeacherExperiment], list(dict.fromkeys([*own, *needed])))

    def sharing(self, costs: Costs, without: Sequence[AnyExperiment] = ()) -> SharingPlan:
        """What the runs share and cost.

        Args:
            costs: of an iteration.
            without: runs that are finished.
        """
        configs = [e.model for e in map(as_dgnet, self.experiments) if e not in without]
        return plan_sharing(configs, [config.iterations for config in configs], costs)


def as_dgnet(experiment: AnyExperiment) -> DGNetExperiment:
    """The experiment, which is DG-Net's."""
    return cast(DGNetExperiment, experiment)


def teacher_needed(experiment: AnyExperiment) -> TeacherExperiment | None:
    """What trains the teacher that a run needs; None: it needs none, or one that is named."""
    if not isinstance(experiment, TaughtExperiment) or experiment.teacher != "auto":
        return None
    return teacher_of(experiment) if experiment.model.needs_teacher else None


def plan_tables(tables: Sequence[Table], base: Base, seeds: Sequence[int], stores: dict[str, Store]) -> TablesPlan:
    """Find out what tables consist of; nothing is changed.

    Args:
        tables: what is wanted.
        base: the paper's run on a store.
        seeds: each row is trained with each of them.
        stores: by their locations, the first being --data's.

    Raises:
        ExperimentError: a store has no query or gallery, or a table has nothing to compare.
    """
    own = next(iter(stores))
    cells: list[Cell] = []
    for table in tables:
        if not table.rows:
            raise ExperimentError(
                f"--tables {table.name}: {len(stores)} store, and it compares several: add --stores with another one"
            )
        for row in table.rows:
            if row.change is None:
                continue
            trained_on, tested_on = row.trained_on or own, row.tested_on or own
            for location in {trained_on, tested_on}:
                _check_splits(stores[location], table)
            for seed in seeds:
                paper = seeded(base(trained_on, table.held_out), seed)
                generator = None if row.generator is None else as_dgnet(row.generator(paper))
                if generator is not None:
                    paper = replace(paper, data=offline_location(generator, stores[trained_on]))
                cells.append(
                    Cell(
                        table=table,
                        row=row,
                        seed=seed,
                        experiment=row.change(paper),
                        tested_on=tested_on,
                        generator=generator,
                    )
                )
    return TablesPlan(tables=tuple(tables), seeds=tuple(seeds), cells=tuple(cells), stores=stores)


def seeded(experiment: DGNetExperiment, seed: int) -> DGNetExperiment:
    """The experiment with all its randomness drawn from a seed, its teacher's too."""
    return replace(
        experiment,
        model=replace(experiment.model, seed=seed),
        baseline=replace(experiment.baseline, seed=seed),
    )


def _check_splits(store: Store, table: Table) -> None:
    missing = [split for split in ("train", "query", "gallery") if split not in store.info.splits]
    if missing:
        raise ExperimentError(
            f"{store.location} has no {' and no '.join(missing)}, which table {table.name} needs: name a store that has"
        )
