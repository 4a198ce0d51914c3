"""Faults of tests/campaign of all jobs; CI runs a dozen by its command."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import requests
from rich.console import Console

from tests.campaign.campaign import FAULTS, Job, draw
from tests.campaign.jobs import ALONE, CLUSTER, campaign
from tests.helpers.servers import refusing

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]


@pytest.mark.long
@pytest.mark.ray
def test_many_faults_of_all_jobs_leave_no_trace(tmp_path: Path):
    done = campaign(tmp_path, 32, 1, ALONE, FAULTS, Console(stderr=True))
    assert {fault: fault.differences for fault in done if fault.differences} == {}


@pytest.mark.long
@pytest.mark.cluster
def test_hosts_that_are_cut_off_or_switched_off_leave_no_trace(tmp_path: Path):
    done = campaign(tmp_path, 6, 1, (CLUSTER,), FAULTS, Console(stderr=True))
    assert {fault.kind for fault in done} == {"kill", "cut", "off"}
    assert {fault: fault.differences for fault in done if fault.differences} == {}


def test_a_seed_draws_jobs_and_kinds_in_turn_and_half_of_the_moments_within_a_write():
    jobs = {name: Job(start=Mock(), outcome=lambda _: {}, faults=FAULTS) for name in ALONE}
    drawn = draw(300, 5, jobs, FAULTS)
    assert drawn == draw(300, 5, jobs, FAULTS)
    assert {(fault.job, fault.kind) for fault in drawn[:40]} == {(name, kind) for name in ALONE for kind in FAULTS}
    assert 0.4 < sum(fault.within for fault in drawn) / len(drawn) < 0.6


def test_a_server_that_refuses_answers_with_500_and_503(free_port: int):
    uri = f"http://127.0.0.1:{free_port}/api"
    with refusing(free_port):
        assert [requests.get(uri, timeout=5).status_code, requests.post(uri, b"x", timeout=5).status_code] == [500, 503]
    with pytest.raises(requests.ConnectionError):
        requests.get(uri, timeout=5)
