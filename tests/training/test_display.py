"""What a training says of itself where there is no terminal."""

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dgnet_platform.runs.journal import Journal
from dgnet_platform.training import display
from dgnet_platform.training.display import Display
from tests.helpers.servers import wait_for
from tests.helpers.tiny import tiny_config

SOME = {"loss/L_img1": 0.25, "speed/images_per_second": 40.0}
LOOK = 1.2
"""Seconds in which the display has looked at the journal twice."""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Of a run that has done 100 iterations."""
    journal = Journal(tmp_path, 0)
    journal.write(100, SOME | {"val/both/mAP": 0.11})
    yield journal
    journal.close()


@contextmanager
def shown(folder: Path) -> Iterator[io.StringIO]:
    """What is said of a run of 1,200 iterations, warm-up until 300."""
    model = tiny_config(iterations=12).rescaled(1_200)
    run = SimpleNamespace(name="r", folder=folder, evaluated_at_end=True, experiment=SimpleNamespace(model=model))
    with Display(run, Console(file=(said := io.StringIO()), width=200)):  # pyright: ignore[reportArgumentType]
        yield said


def test_lines_say_where_a_run_is_how_fast_and_how_long_it_takes(journal, tmp_path, monkeypatch):
    monkeypatch.setattr(display, "LINES_EVERY", 0.0)
    begun = time.monotonic()
    with shown(tmp_path) as said:
        for iteration in (200, 500):
            journal.write(iteration, SOME | {"loss/L_s_id": iteration / 1000})
            wait_for(lambda at=iteration: f"r: {at} of 1,200" in said.getvalue(), 30)
    took, lines = time.monotonic() - begun, said.getvalue().splitlines()
    before = "before warm-up (until 300), image 0.250, identity 0.200, 40 images/s, validation mAP: both 11.0"
    assert f"r: 200 of 1,200, {before}" in lines
    line = next(line for line in lines if line.startswith("r: 500 of 1,200, ramp, image 0.250, identity 0.500, 40 i"))
    left = re.fullmatch(r".*, about (\d+) s left", line)
    assert left is not None, line
    assert 0 < int(left[1]) <= 700 / 300 * took + 1  # at the speed since 200


def test_an_evaluation_is_told_at_once_and_what_was_before_is_not(journal, tmp_path):
    with shown(tmp_path) as said:
        time.sleep(LOOK)
        assert said.getvalue() == ""
        journal.write(200, SOME | {"val/prim/mAP": 0.123, "val/both/mAP": 0.456, "val/swap/SSIM": 0.5})
        wait_for(said.getvalue, 30)
        journal.write(201, SOME)  # no line is due
        time.sleep(LOOK)
    [line] = said.getvalue().splitlines()
    assert line.endswith("40 images/s, validation mAP: prim 12.3 both 45.6, swap SSIM 0.500")


def test_a_run_at_its_end_says_what_it_still_does(journal, tmp_path):
    with shown(tmp_path) as said:
        journal.write(1_200, SOME)
        wait_for(said.getvalue, 30)
    assert said.getvalue() == "r: evaluating on query and gallery\n"


def test_a_surge_of_the_loss_warns_once(journal, tmp_path):
    with shown(tmp_path) as said:
        for iteration in (700, 701):
            journal.write(iteration, SOME | {"monitor/identity_surge": 1e3})
    [line] = said.getvalue().splitlines()
    assert line.startswith("iteration 700: the identity loss on real images is 1000.0 times its usual level")
