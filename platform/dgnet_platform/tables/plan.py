"""What a command of tables comes down to: which runs, of which seeds, and what they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar, cast

from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment, TaughtExperiment, TeacherExperiment
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.search.sharing import Costs, SharingPlan, plan_sharing
from dgnet_platform.tables.offline import offline_location
from dgnet_platform.tables.rows import Row, Table

Kind = TypeVar("Kind", bound=AnyExperiment)
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
    generator: AnyExperiment | None = None
    """What draws pictures of the store that it trains on, which is made when this is trained."""


@dataclass(frozen=True, kw_only=True)
class RunsPlan:
    """What is trained, each once."""

    wanted: tuple[AnyExperiment, ...]
    """What is asked for; what it learns from is found from it."""
    stores: dict[str, Store]
    """By their locations, the first being --data's."""
    tests: tuple[tuple[AnyExperiment, str], ...] = ()
    """What is also tested on which store, by its location: its own query and gallery it always is."""
    generators: dict[str, AnyExperiment] = field(default_factory=dict)
    """What draws the pictures of stores that are made on the way, by their locations."""

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
        """What DG-Nets are trained, each once; in the order of what is wanted, so that prefixes are trained at once."""
        wanted = [*self.wanted, *self.generators.values()]
        return list(dict.fromkeys(experiment for experiment in wanted if isinstance(experiment, TaughtExperiment)))

    @cached_property
    def offline(self) -> list[AnyExperiment]:
        """What is trained on generated pictures, once they are drawn."""
        return list(dict.fromkeys(experiment for experiment in self.wanted if experiment.data in self.generators))

    @cached_property
    def teachers(self) -> list[AnyExperiment]:
        """What is trained first: what needs no teacher, and the teachers that others need."""
        alone = [
            experiment
            for experiment in (*self.wanted, *self.generators.values())
            if not isinstance(experiment, TaughtExperiment) and experiment.data not in self.generators
        ]
        needed = [teacher for experiment in self.experiments if (teacher := teacher_needed(experiment)) is not None]
        return list(dict.fromkeys([*alone, *needed]))

    def sharing(self, costs: Costs, without: Sequence[AnyExperiment] = ()) -> SharingPlan:
        """What the runs share and cost.

        Args:
            costs: of an iteration.
            without: runs that are finished.
        """
        configs = [e.model for e in map(as_dgnet, self.experiments) if e not in without]
        return plan_sharing(configs, [config.iterations for config in configs], costs)


@dataclass(frozen=True, kw_only=True)
class TablesPlan(RunsPlan):
    """What is trained and compared."""

    tables: tuple[Table, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


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
                generator = None if row.generator is None else row.generator(paper)
                if generator is not None:
                    paper = replace(paper, data=offline_location(generator, stores[trained_on]))
                cells.append(
                    Cell(
                        table=table,
                        row=row,
                        seed=seed,
                        experiment=seeded(row.change(paper), seed),
                        tested_on=tested_on,
                        generator=generator,
                    )
                )
    return TablesPlan(
        wanted=tuple(cell.experiment for cell in cells),
        stores=stores,
        tests=tuple((cell.experiment, cell.tested_on) for cell in cells),
        generators={cell.experiment.data: cell.generator for cell in cells if cell.generator is not None},
        tables=tuple(tables),
        seeds=tuple(seeds),
        cells=tuple(cells),
    )


def seeded(experiment: Kind, seed: int) -> Kind:
    """The experiment with all its randomness drawn from a seed, its teacher's too."""
    seeded = replace(experiment, model=replace(experiment.model, seed=seed))
    if isinstance(seeded, TaughtExperiment):
        seeded = replace(seeded, baseline=replace(seeded.baseline, seed=seed))
    return cast(Kind, seeded)


def _check_splits(store: Store, table: Table) -> None:
    missing = [split for split in ("train", "query", "gallery") if split not in store.info.splits]
    if missing:
        raise ExperimentError(
            f"{store.location} has no {' and no '.join(missing)}, which table {table.name} needs: name a store that has"
        )
