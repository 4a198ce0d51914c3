"""What a search says of itself where there is no terminal."""

import io
import time
from types import SimpleNamespace

from rich.console import Console

from dgnet_platform.search.report import display
from dgnet_platform.search.report.display import SearchDisplay
from dgnet_platform.search.report.leaderboard import TrialRow


def row(number: int, state: str, iterations: int, trained: int) -> TrialRow:
    return TrialRow(number=number, name=f"t{number}", state=state, iterations=iterations, trained_iterations=trained)


def results(rows: list[TrialRow], missing: int, runs_to_confirm: int) -> SimpleNamespace:
    """A search of four trials, 400 iterations each."""
    base = SimpleNamespace(model=SimpleNamespace(iterations=400))
    plan = SimpleNamespace(name="s", base=base, space=SimpleNamespace(searched=()))
    return SimpleNamespace(
        plan=plan, study=SimpleNamespace(target=4, missing=missing), rows=lambda: list(rows), sibling_rows=list,
        runs_to_confirm=runs_to_confirm,
    )  # fmt: skip


def test_lines_say_where_a_search_is_how_fast_and_how_long_it_takes(monkeypatch):
    monkeypatch.setattr(display, "EVERY", 0.02)
    monkeypatch.setattr(display, "LINES_EVERY", 0.2)
    rows = [row(0, "finished", 400, 400), row(1, "trains", 100, 0)]
    console = Console(file=(said := io.StringIO()), width=200)
    with SearchDisplay(results(rows, missing=2, runs_to_confirm=8), console):  # pyright: ignore[reportArgumentType]
        time.sleep(0.3)
        for done in (110, 150):
            rows[1] = row(1, "trains", done, done - 100)
            time.sleep(0.3)
    lines = said.getvalue().splitlines()
    assert len(lines) <= 5
    assert lines[0] == "s: 1 of 4 trials, 400 of about 4,700 iterations trained"
    assert lines[-1].startswith("s: 1 of 4 trials, 450 of about 4,700 iterations trained, ")
    assert " a second, about " in lines[-1]
    assert lines[-1].endswith(" left")
