"""The journal: complete lines only, nothing twice, nothing lost."""

import json

import pytest

from dgnet_platform.runs.journal import JOURNAL, Journal, Tail, read


@pytest.fixture
def journal(tmp_path):
    with_lines = Journal(tmp_path, 0)
    for iteration in (1, 2, 3):
        with_lines.write(iteration, {"loss": iteration / 2}, {"swaps": "a.png"} if iteration == 2 else None)
    with_lines.sync()
    with_lines.close()
    return tmp_path


def test_what_is_written_is_read(journal):
    entries = list(read(journal))
    assert [(entry.iteration, entry.metrics["loss"]) for entry in entries] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [dict(entry.pictures) for entry in entries] == [{}, {"swaps": "a.png"}, {}]
    assert entries[0].time > 1_600_000_000_000


def test_a_resumed_run_drops_later_lines_and_half_a_line(journal):
    with (journal / JOURNAL).open("a") as file:
        file.write('{"iteration": 4, "met')
    resumed = Journal(journal, 2)
    resumed.write(3, {"loss": 9.0})
    resumed.close()
    assert [(entry.iteration, entry.metrics["loss"]) for entry in read(journal)] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_a_tail_sees_each_iteration_once(journal):
    tail = Tail(journal, after=1)
    assert [entry.iteration for entry in tail.read(1)] == [2]
    assert [entry.iteration for entry in tail.read()] == [3]
    assert list(tail.read()) == []
    resumed = Journal(journal, 1)  # iterations 2 and 3 are done again
    for iteration in (2, 3, 4):
        resumed.write(iteration, {})
    resumed.close()
    assert [entry.iteration for entry in tail.read()] == [4]


def test_a_tail_waits_for_the_end_of_a_line(journal):
    tail = Tail(journal, after=3)
    line = json.dumps({"iteration": 4, "time": 0, "metrics": {}})
    with (journal / JOURNAL).open("a") as file:
        file.write(line[:10])
        file.flush()
        assert list(tail.read()) == []
        file.write(line[10:] + "\n")
        file.flush()
        assert [entry.iteration for entry in tail.read()] == [4]


def test_damage_in_the_middle_costs_one_line(journal):
    lines = (journal / JOURNAL).read_text().splitlines()
    (journal / JOURNAL).write_text("\n".join([lines[0], "\0\0\0", lines[2]]) + "\n")
    assert [entry.iteration for entry in read(journal)] == [1, 3]


def test_no_journal_is_an_empty_one(tmp_path):
    assert list(read(tmp_path)) == []
