#!/usr/bin/env python
"""What `ray up` needs once: `uv run platform/cluster/prepare.py cluster.yaml`. A second time it changes nothing.

Checks the cluster's file, and makes what is missing of the token of Ray (~/.ray/auth_token), the password of the MLflow
server (~/.mlflow/credentials) and, on AWS, the bucket and the two roles of the machines.
"""

import json
import os
import re
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import tyro
import yaml
from mlflow_server import CREDENTIALS, ServerError, credentials, write_private
from ray.autoscaler._private.util import prepare_config, validate_config

TOKEN = Path("~/.ray/auth_token").expanduser()
HEAD, WORKER = "dgnet-head", "dgnet-worker"


class PrepareError(RuntimeError):
    """There cannot be such a cluster; the message says what to do."""


def prepare(file: Path, /) -> None:
    """Check and make what a cluster needs, and say what comes next.

    Args:
        file: The cluster's file, such as cluster.yaml.

    Raises:
        PrepareError: names the line or the remedy.
    """
    config = check(file)
    if not TOKEN.exists():
        TOKEN.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(TOKEN, secrets.token_hex(32))
    user, _, source = credentials()
    if not CREDENTIALS.exists():
        raise PrepareError(f"{CREDENTIALS} is what the machines get: write there what {source} says")
    missing = [path for path in map(Path, config["file_mounts"].values()) if not path.expanduser().exists()]
    if missing:
        raise PrepareError(f"{', '.join(map(str, missing))}: not there; this command runs in the repository's folder")
    if config["provider"]["type"] == "aws" and prepare_aws(config["provider"]["region"], bucket_of(config)):
        time.sleep(15)  # EC2 hears of new roles a little later
    up = f"uv run ray up {shlex.quote(str(file))}"
    print(f"Ray's token: {TOKEN}; MLflow's user {user}, password in {source}. Next: {up}")


def check(file: Path) -> dict[str, Any]:
    """A cluster's file, if Ray would take it.

    Raises:
        PrepareError: says what is wrong with it.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        validate_config(prepare_config(config))
    except Exception as error:  # Ray raises seven different ones
        raise PrepareError(f"{file}: {getattr(error, 'message', error)}") from error
    for name, kind in config.get("available_node_types", {}).items():
        if kind.get("min_workers", 0) > kind.get("max_workers", config["max_workers"]):
            raise PrepareError(f"{file}: {name} has more min_workers than max_workers")
    return config


def bucket_of(config: dict[str, Any]) -> str:
    """The name of the bucket, as the head's commands set it; empty where there is none."""
    found = re.search(r"DGNET_BUCKET=[\"']?s3://([a-z0-9.-]+)", " ".join(config.get("head_setup_commands", [])))
    return found[1] if found else ""


def prepare_aws(region: str, bucket: str) -> bool:
    """Make the bucket and the machines' roles, as far as they are missing; returns whether a role was.

    Raises:
        PrepareError: credentials are missing or refused, or the bucket has another owner.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise PrepareError("a cluster on AWS needs boto3: uv sync --extra aws") from None
    session = boto3.Session(region_name=region)
    quick = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    try:
        identity = session.client("sts", config=quick).get_caller_identity()
        uses_bucket = []
        if bucket:
            make_bucket(session.client("s3", config=quick), bucket, region)
            objects = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
            uses_bucket = [{"Effect": "Allow", "Action": "s3:*", "Resource": objects}]
        passes = f"arn:aws:iam::{identity['Account']}:role/{WORKER}"
        starts_workers = [
            {"Effect": "Allow", "Action": ["ec2:*"], "Resource": "*"},
            {"Effect": "Allow", "Action": "iam:PassRole", "Resource": passes},
            {"Effect": "Allow", "Action": "iam:CreateServiceLinkedRole", "Resource": "*"},  # once, for spot
            {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"},
        ]
        iam = session.client("iam", config=quick)
        worker = make_role(iam, WORKER, {f"bucket-{bucket}": uses_bucket})
        return worker | make_role(iam, HEAD, {f"bucket-{bucket}": uses_bucket, "workers": starts_workers})
    except (BotoCoreError, ClientError) as error:
        raise PrepareError(
            f"AWS in {region}: {error}. It takes credentials (aws configure, AWS_PROFILE) that may use EC2 and S3, and"
            " make roles"
        ) from error


def make_bucket(s3: Any, bucket: str, region: str) -> None:
    """Make a bucket without public access; raises PrepareError if it has another owner."""
    try:
        s3.head_bucket(Bucket=bucket)
    except s3.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise PrepareError(
                f"bucket {bucket} is not yours ({error}): names are shared by all of AWS, choose another one"
            ) from error
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=bucket, **place)  # private, as buckets are by default
        print(f"made bucket {bucket} in {region}")


def make_role(iam: Any, name: str, policies: dict[str, list[dict[str, Any]]]) -> bool:
    """Make a role that instances can have, and let it do what policies of these names allow, besides those it has.

    Returns:
        Whether instances could not have it before.
    """
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy([trust]))
        print(f"made role {name}")
    except iam.exceptions.EntityAlreadyExistsException:
        pass
    for policy, statements in policies.items():
        if statements:
            iam.put_role_policy(RoleName=name, PolicyName=f"dgnet-{policy}", PolicyDocument=_policy(statements))
    try:
        iam.create_instance_profile(InstanceProfileName=name)
    except iam.exceptions.EntityAlreadyExistsException:
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        if any(role["RoleName"] == name for role in profile["Roles"]):
            return False
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return True


def _policy(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def main() -> int:
    """Prepare the cluster that the command line names; returns the exit status."""
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")  # this is no instance: no service answers there
    try:
        tyro.cli(prepare, description=__doc__)
    except (PrepareError, ServerError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
