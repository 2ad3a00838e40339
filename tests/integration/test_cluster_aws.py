"""cluster/gpu.yaml, from `ray up` to a GPU machine, against a simulated AWS and no network."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import node_provider as aws_provider
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.commands import get_or_create_head_node
from ray.autoscaler._private.event_summarizer import EventSummarizer
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import ConcurrentCounter, prepare_config, validate_config

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
GPU = yaml.safe_load((ROOT / "cluster" / "gpu.yaml").read_text())
GROUP, REGION = "mimimi-search", GPU["provider"]["region"]
OFFICE = "203.0.113.7/32"
GPU_EACH: Mapping[str, float] = {"GPU": 1}


@dataclass
class Ssh:
    """Takes the place of `subprocess`: what Ray would have run, none of it run."""

    commands: list[str] = field(default_factory=list)
    DEVNULL = subprocess.DEVNULL

    def check_call(self, command: list[str], **options: Any) -> None:
        self.commands.append(" ".join(command))

    def check_output(self, command: list[str], **options: Any) -> bytes:
        self.commands.append(" ".join(command))
        return b""


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An EC2 client of an empty account; at the end, nobody may have connected to anything."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(aws_config, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(aws_provider, "TAG_BATCH_DELAY", 0)

    called = []

    def refuse(self: socket.socket, address: Any) -> None:
        called.append(address)
        raise OSError(f"{address} must not be called")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.client("ec2", REGION)

        def list_few(region: str, credentials: Any) -> list[dict[str, Any]]:
            """Those types that are asked for; the simulation takes 18 s to list all."""
            types = {n["node_config"]["InstanceType"] for n in GPU["available_node_types"].values()}
            return list(ec2.describe_instance_types(InstanceTypes=sorted(types))["InstanceTypes"])

        monkeypatch.setattr(aws_provider, "list_ec2_instances", list_few)
        yield ec2
    assert called == []
    resource_cache.cache_clear()
    client_cache.cache_clear()
    aws_config._get_subnets_or_die.cache_clear()


def bootstrap() -> dict[str, Any]:
    """The steps that `ray up` takes before it launches anything."""
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(GPU))
    validate_config(config)
    return dict(AWSNodeProvider.bootstrap_config(config))


def make_group(ec2: Any) -> str:
    """As docs/cluster.md says."""
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName=GROUP, Description=GROUP, VpcId=vpc)["GroupId"]
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": OFFICE}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[inside, ssh])
    return str(group)


def rules(ec2: Any, group: str) -> list[tuple[Any, ...]]:
    """(protocol, port, from where) of everything that is let in."""
    found = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    return sorted(
        (rule["IpProtocol"], rule.get("FromPort"), source)
        for rule in found
        for source in [
            *(pair["GroupId"] for pair in rule["UserIdGroupPairs"]),
            *(where["CidrIp"] for where in rule["IpRanges"]),
        ]
    )


def instances(ec2: Any) -> dict[str, dict[str, Any]]:
    """Every instance by its node type, with its tags as a dict."""
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    for instance in found:
        instance["tags"] = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    return {instance["tags"]["ray-user-node-type"]: instance for instance in found}


class Autoscaler:
    """What the head runs to find workers: its first autoscaler's scheduler and launcher."""

    def __init__(self, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Takes the scorer from the command that starts the head."""
        scorer = re.search(r"RAY_AUTOSCALER_UTILIZATION_SCORER=([\w.]+)", str(config))
        assert scorer
        monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", scorer[1])
        monkeypatch.syspath_prepend(str(ROOT))  # PYTHONPATH of the same command
        self.config, self.counter = config, ConcurrentCounter()
        self.provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        self.seen = NodeProviderAvailabilityTracker()
        types = config["available_node_types"]
        self.scheduler = ResourceDemandScheduler(
            self.provider, types, config["max_workers"], config["head_node_type"], 1.0
        )
        self.launcher = BaseNodeLauncher(
            self.provider, self.counter, EventSummarizer(), self.seen, node_types=types
        )

    def wish(self, n: int, bundle: Mapping[str, float] = GPU_EACH) -> dict[str, int]:
        """What would be launched, if all that was launched has joined and is idle."""
        nodes = self.provider.non_terminated_nodes({})
        types = self.config["available_node_types"]
        joined = {
            self.provider.internal_ip(node): dict(
                types[self.provider.node_tags(node)["ray-user-node-type"]]["resources"]
            )
            for node in nodes
        }
        launch, _ = self.scheduler.get_nodes_to_launch(
            nodes=nodes,
            launching_nodes={},
            resource_demands=[],
            unused_resources_by_ip=joined,
            pending_placement_groups=[],
            max_resources_by_ip=joined,
            ensure_min_cluster_size=[dict(bundle)] * n,
            node_availability_summary=self.seen.summary(),
        )
        launch.pop("head", None)  # where a test has launched none
        return dict(launch)

    def launch(self, n_gpus: int) -> None:
        """Take one step towards the wish; the simulation grants one machine a request."""
        for node_type, count in self.wish(n_gpus).items():
            self.counter.inc(node_type, count)
            self.launcher.launch_node(self.config, count, node_type)


@pytest.fixture
def launched(aws: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Ssh, str]:
    """A head and one worker: the configuration, what went over ssh, the security group."""
    group, ssh, config = make_group(aws), Ssh(), bootstrap()
    get_or_create_head_node(config, "gpu.yaml", False, False, True, None, _runner=ssh)
    Autoscaler(config, monkeypatch).launch(1)
    return config, ssh, group


def test_ray_up_launches_a_head_and_the_head_a_spot_worker(
    aws: Any, launched: tuple[dict[str, Any], Ssh, str]
) -> None:
    config, ssh, group = launched
    found = instances(aws)
    assert set(found) == {"head", "gpu_spot"}
    head, worker = found["head"], found["gpu_spot"]

    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    assert (head["tags"]["ray-node-type"], worker["tags"]["ray-node-type"]) == ("head", "worker")
    subnets = aws.describe_subnets()["Subnets"]
    zone_of = {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in subnets}
    for instance in (head, worker):
        assert instance["tags"]["ray-cluster-name"] == "mimimi-search"
        assert [g["GroupId"] for g in instance["SecurityGroups"]] == [group]
        assert zone_of[instance["SubnetId"]] in GPU["provider"]["availability_zone"].split(",")
        behavior = aws.describe_instance_attribute(
            InstanceId=instance["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
        )
        assert behavior["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"

    # Only the head may do anything at AWS.
    assert head["IamInstanceProfile"]["Arn"].endswith("ray-autoscaler-v1")
    assert "IamInstanceProfile" not in worker
    attached = boto3.client("iam").list_attached_role_policies(RoleName="ray-autoscaler-v1")
    names = {policy["PolicyName"] for policy in attached["AttachedPolicies"]}
    assert names == {"AmazonEC2FullAccess", "AmazonS3FullAccess"}

    # A group that exists is left as it is, and no port is open to the world.
    assert rules(aws, group) == sorted([("-1", None, group), ("tcp", 22, OFFICE)])

    # The head is set up in this order, at its own address.
    said = "\n".join(ssh.commands)
    steps = ["rsync", "mount -t nfs4", "pip install", "'.[dashboard,postgres]'", "ray stop"]
    steps += ["ray start --head", "mlflow server"]
    places = [said.index(step) for step in steps]
    assert places == sorted(places)
    assert f"ubuntu@{head['PublicIpAddress']}" in said
    assert "dir-merge,- .gitignore" in said
    assert config["file_mounts"] == {
        "~/mimimi-search": ".",
        "~/.ray/auth_token": "~/.ray/auth_token",
    }
    assert os.environ["HOME"] in said  # the key that Ray made, in the place of ~/.ssh


def test_on_demand_takes_the_place_of_refused_spot(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_group(aws)
    autoscaler = Autoscaler(bootstrap(), monkeypatch)
    create = autoscaler.provider.ec2_fail_fast.create_instances

    def create_no_spot(**request: Any) -> Any:
        if "InstanceMarketOptions" in request:
            error = {"Code": "InsufficientInstanceCapacity", "Message": "none left"}
            raise ClientError({"Error": error}, "RunInstances")
        return create(**request)

    simulated = SimpleNamespace(create_instances=create_no_spot)
    monkeypatch.setattr(autoscaler.provider, "ec2_fail_fast", simulated)

    assert autoscaler.wish(2) == {"gpu_spot": 2}
    autoscaler.launch(2)
    assert instances(aws) == {}
    assert autoscaler.wish(2) == {"gpu_on_demand": 2}
    autoscaler.launch(2)
    assert set(instances(aws)) == {"gpu_on_demand"}
    assert autoscaler.wish(2) == {"gpu_on_demand": 1}  # the other one

    half_an_hour_later = time.time() + 1801
    autoscaler.seen.timer = lambda: half_an_hour_later
    assert autoscaler.wish(2) == {"gpu_spot": 1}


def test_a_search_that_knows_of_no_gpu_gets_one_and_four_trials_share_it(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_group(aws)
    autoscaler = Autoscaler(bootstrap(), monkeypatch)
    assert autoscaler.wish(1, {"CPU": 1.0}) == {"gpu_spot": 1}
    assert autoscaler.wish(8, {"CPU": 1.0, "GPU": 0.25}) == {"gpu_spot": 2}


def test_more_gpus_than_max_workers_are_never_launched(
    aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_group(aws)
    autoscaler = Autoscaler(bootstrap(), monkeypatch)
    for _ in range(10):
        autoscaler.launch(100)
    found = autoscaler.provider.non_terminated_nodes({})
    assert len(found) == GPU["max_workers"]


def test_without_a_group_only_port_22_is_open(aws: Any) -> None:
    """What the head of gpu.yaml warns of."""
    config = bootstrap()
    group = config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"][0]
    assert [rule for rule in rules(aws, group) if rule[2] != group] == [("tcp", 22, "0.0.0.0/0")]
