"""What `ray up cluster.yaml` asks of AWS: against a mock of it, as far as the request for instances."""

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from tests.helpers.cluster_files import load, prepare
from tests.helpers.runs import ROOT

BUCKET = "dgnet-test-bucket"
pytestmark = pytest.mark.filterwarnings("ignore")  # botocore and Ray


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """An account in which there is nothing yet, and a home for Ray's keys."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "HOME": str(tmp_path)}
    for name, value in {**values, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        yield


def statements(iam: Any, role: str) -> list[dict[str, Any]]:
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    policies = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    return [statement for policy in policies for statement in policy["Statement"]]


def test_bucket_and_roles_are_made_once(aws, capsys):
    assert prepare.prepare_aws("us-west-2", BUCKET)
    assert not prepare.prepare_aws("us-west-2", BUCKET)
    assert capsys.readouterr().out.count("made") == 3
    iam, s3 = boto3.client("iam"), boto3.client("s3", region_name="us-west-2")
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == "us-west-2"
    for name in ("dgnet-head", "dgnet-worker"):
        [role] = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        assert role["RoleName"] == name
    [worker] = statements(iam, "dgnet-worker")
    assert all(BUCKET in resource for resource in worker["Resource"])
    actions = json.dumps([statement["Action"] for statement in statements(iam, "dgnet-head")])
    assert "iam:PassRole" in actions
    assert "ssm:GetParameters" in actions

    assert not prepare.prepare_aws("us-west-2", "another-bucket")  # of a second cluster: the first one keeps its own
    resources = json.dumps([statement["Resource"] for statement in statements(iam, "dgnet-worker")])
    assert BUCKET in resources
    assert "another-bucket" in resources

    iam.remove_role_from_instance_profile(InstanceProfileName="dgnet-worker", RoleName="dgnet-worker")
    assert prepare.prepare_aws("us-west-2", BUCKET)  # as if it had been killed before that
    [role] = iam.get_instance_profile(InstanceProfileName="dgnet-worker")["InstanceProfile"]["Roles"]
    assert role["RoleName"] == "dgnet-worker"


def test_a_cluster_may_have_no_bucket(aws):
    for quoted in ("'export DGNET_BUCKET=s3://my-bucket/x'", 'export DGNET_BUCKET="s3://my-bucket"'):
        assert prepare.bucket_of({"head_setup_commands": [quoted]}) == "my-bucket"
    assert prepare.bucket_of({"head_setup_commands": ["echo"]}) == ""
    assert prepare.prepare_aws("us-west-2", "")
    assert boto3.client("s3").list_buckets()["Buckets"] == []
    assert statements(boto3.client("iam"), "dgnet-worker") == []


def test_bad_accounts_are_refused_in_seconds(aws, monkeypatch):
    def refused(said: str, bucket: str = BUCKET) -> None:
        with pytest.raises(prepare.PrepareError, match=said):
            prepare.prepare_aws("us-west-2", bucket)

    refused("Bucket", bucket="A bucket")
    error = boto3.client("s3", region_name="us-west-2").exceptions.ClientError(
        {"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadBucket"
    )

    class Foreign:
        exceptions = boto3.client("s3", region_name="us-west-2").exceptions

        def head_bucket(self, Bucket: str) -> None:  # noqa: N803 - boto's
            raise error

    with pytest.raises(prepare.PrepareError, match=rf"{BUCKET} is not yours .*choose another"):
        prepare.make_bucket(Foreign(), BUCKET, "us-west-2")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    refused("aws configure, AWS_PROFILE")


@pytest.mark.slow
def test_ray_asks_for_the_instances_of_the_file(aws, tmp_path, monkeypatch):
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

    monkeypatch.chdir(ROOT)
    prepare.prepare_aws("us-west-2", BUCKET)
    config = _bootstrap_config(load(ROOT / "cluster.yaml"), no_config_cache=True)
    kinds = config["available_node_types"]
    assert kinds["spot"]["resources"]["GPU"] == kinds["on_demand"]["resources"]["GPU"] == 1  # found by the type
    assert kinds["head"]["resources"]["CPU"] == 0
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    for name, kind in kinds.items():
        role = "head" if name == "head" else "worker"
        tags = {
            TAG_RAY_NODE_KIND: role,
            TAG_RAY_USER_NODE_TYPE: name,
            TAG_RAY_LAUNCH_CONFIG: "",
            TAG_RAY_NODE_NAME: name,
        }
        provider.create_node(kind["node_config"], tags, 1)
    ec2 = boto3.client("ec2", region_name="us-west-2")
    instances = {
        next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == TAG_RAY_USER_NODE_TYPE): instance
        for reservation in ec2.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    }
    assert {name: instance.get("InstanceLifecycle") for name, instance in instances.items()} == {
        "head": None, "on_demand": None, "spot": "spot",
    }  # fmt: skip
    assert {name: instance["InstanceType"] for name, instance in instances.items()} == {
        "head": "m7i.xlarge", "on_demand": "g6.2xlarge", "spot": "g6.2xlarge",
    }  # fmt: skip
    for name, instance in instances.items():
        role = "dgnet-head" if name == "head" else "dgnet-worker"
        assert instance["IamInstanceProfile"]["Arn"].endswith(role)
        assert instance["KeyName"]
    # From outside one only gets in by SSH; within the group everything goes.
    groups = {group["GroupId"] for instance in instances.values() for group in instance["SecurityGroups"]}
    for group in ec2.describe_security_groups(GroupIds=list(groups))["SecurityGroups"]:
        for rule in group["IpPermissions"]:
            assert not rule["IpRanges"] or (rule["FromPort"], rule["ToPort"]) == (22, 22), rule
    assert "resolve:ssm:" in yaml.safe_dump(kinds["spot"]["node_config"])
    assert list(Path(tmp_path / ".ssh").glob("*.pem"))
