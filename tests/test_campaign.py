"""A few faults of tests/campaign.py in CI; `uv run pytest -m long` has more, of all jobs."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.campaign import FAULTS, NAMES, campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]


def test_faults_leave_no_trace(tmp_path: Path):
    done = campaign(tmp_path, 3, 0, ("prepare", "training"), ("kill", "stop", "disk"), Console(stderr=True))
    assert {fault: fault.differences for fault in done if fault.differences} == {}


@pytest.mark.long
@pytest.mark.ray
def test_many_faults_of_all_jobs_leave_no_trace(tmp_path: Path):
    done = campaign(tmp_path, 32, 1, NAMES, FAULTS, Console(stderr=True))
    assert {fault: fault.differences for fault in done if fault.differences} == {}
