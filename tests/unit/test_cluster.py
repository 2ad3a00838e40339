"""The three cluster files: valid for whoever reads them, closed to the world, and alike."""

import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import spot_first
from tests.waiting import wait_until

CLUSTER = Path(__file__).parents[2] / "cluster"
GPU, LOCAL = (yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()) for name in ("gpu", "local"))
VOLUME, RAY_CLUSTER = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
PODS = [
    group["template"]["spec"]
    for group in (RAY_CLUSTER["spec"]["headGroupSpec"], *RAY_CLUSTER["spec"]["workerGroupSpecs"])
]


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command of a file for `ray up`."""
    return [c for key, value in config.items() if key.endswith("_commands") for c in value]


def test_commands_are_found() -> None:
    assert len(commands(GPU)) > 10
    assert len(commands(LOCAL)) > 7


@pytest.mark.parametrize("config", [GPU, LOCAL], ids=["gpu", "local"])
def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


@pytest.mark.parametrize("config", [GPU, LOCAL], ids=["gpu", "local"])
def test_ray_refuses_the_file_with_a_misspelt_key(config: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="rsync_filters"):
        validate_config(prepare_config({**config, "rsync_filters": []}))


@pytest.mark.parametrize("command", [*commands(GPU), *commands(LOCAL)])
def test_the_shell_can_read_the_command(command: str) -> None:
    check = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("config", [GPU, LOCAL], ids=["gpu", "local"])
def test_ray_starts_as_it_must_and_nothing_is_served_to_others(config: dict[str, Any]) -> None:
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    for start in starts:
        assert "export RAY_AUTH_MODE=token" in start.partition("ray start")[0]
    assert "RAY_enable_autoscaler_v2=0" in starts[0].partition("ray start")[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    hosts = re.findall(r"--(?:dashboard-)?host[ =](\S+)", " ".join(commands(config)))
    assert hosts == ["127.0.0.1"] * 2  # Ray's dashboard and MLflow


def test_mlflow_runs_no_jobs_of_its_own() -> None:
    """They cost eight processes and most of the 2 GiB that its pod has."""
    servers = [c for c in (*commands(GPU), *commands(LOCAL)) if "mlflow server" in c]
    assert len(servers) == 2
    off = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    assert all(off in command for command in servers)
    assert off in PODS[0]["containers"][1]["command"]


def test_gpus_start_from_zero_and_go_when_idle() -> None:
    config = prepare_config(GPU)
    head, *workers = config["available_node_types"].values()
    assert (head["max_workers"], head["resources"]) == (0, {"CPU": 0})
    assert [worker["min_workers"] for worker in workers] == [0, 0]
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert config["provider"]["cache_stopped_nodes"] is False
    spot, on_demand = (dict(worker["node_config"]) for worker in workers)
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == on_demand


@pytest.mark.parametrize(
    ("raylet_is_there", "ends"), [([True], False), ([False, False], True), ([False, True], False)]
)
def test_a_machine_without_ray_ends_itself(
    raylet_is_there: list[bool], ends: bool, tmp_path: Path
) -> None:
    line = next(command for command in commands(GPU) if "cron.d" in command)
    watch = line.partition("* root ")[2].partition("' |")[0]
    answers = tmp_path / "answers"
    answers.write_text("".join(f"{int(not there)}\n" for there in raylet_is_there))
    scripts = {
        "pgrep": f'read code < {answers}; sed -i 1d {answers}; exit "$code"',
        "sleep": f"echo $1 > {tmp_path}/slept",
        "shutdown": f"touch {tmp_path}/ended",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    watch = watch.replace("/sbin/shutdown", "shutdown")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", watch], env={"PATH": path}, check=True)
    assert (tmp_path / "ended").exists() == ends
    if len(raylet_is_there) > 1:
        assert (tmp_path / "slept").read_text() == "1800\n"


# Fields of KubeRay's RayCluster as its Go types and its CRD declare them (ray-project/kuberay,
# apis/ray/v1/raycluster_types.go and crds/ray.io_rayclusters.yaml), as far as our file uses them,
# and of the pods inside; the API server drops or refuses any other field.
def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


CONTAINER = _object(
    "name image",
    name=TEXT,
    image=TEXT,
    command=_list(TEXT),
    args=_list(TEXT),
    resources=_object("", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=_list(_object("name mountPath", name=TEXT, mountPath=TEXT)),
)
CLAIM = _object("claimName", claimName=TEXT)
POD = _object(
    "containers",
    securityContext=_object("", fsGroup=COUNT),
    containers=_list(CONTAINER),
    volumes=_list(_object("name", name=TEXT, persistentVolumeClaim=CLAIM)),
)
GROUP = {"rayStartParams": TEXTS, "template": _object("spec", spec=POD)}
SPEC = _object(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=_object("", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_object("", idleTimeoutSeconds=COUNT),
    headGroupSpec=_object("rayStartParams template", **GROUP),
    workerGroupSpecs=_list(
        _object(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            **GROUP,
        )
    ),
)
RAY_CLUSTER_SCHEMA = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_object("name", name=TEXT),
    spec=SPEC,
)


def test_kuberay_knows_every_field() -> None:
    jsonschema.validate(RAY_CLUSTER, RAY_CLUSTER_SCHEMA)
    assert RAY_CLUSTER["spec"]["authOptions"] == {"mode": "token"}


def test_rays_autoscaler_reads_the_pods_as_meant() -> None:
    metadata = RAY_CLUSTER["metadata"] | {"namespace": "default"}
    config = _derive_autoscaling_config_from_ray_cr(RAY_CLUSTER | {"metadata": metadata})
    validate_config(config)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"] == {"CPU": 0, "memory": 8 * 2**30}
    assert types["gpu"]["resources"] == {"CPU": 4, "GPU": 1, "memory": 16 * 2**30}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)
    assert config["idle_timeout_minutes"] == GPU["idle_timeout_minutes"]


def test_every_pod_has_the_shared_folder_and_serves_nobody_else() -> None:
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    claim = {"claimName": VOLUME["metadata"]["name"]}
    for pod in PODS:
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": claim}]
        for container in pod["containers"]:
            assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    head, mlflow = PODS[0]["containers"]
    assert "--host=127.0.0.1" in mlflow["args"]
    params = RAY_CLUSTER["spec"]["headGroupSpec"]["rayStartParams"]
    assert params["dashboard-host"] == "127.0.0.1"


def test_the_image_has_the_ray_that_is_tested() -> None:
    assert RAY_CLUSTER["spec"]["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-py311" in (CLUSTER / "Dockerfile").read_text()
    images = {container["image"] for pod in PODS for container in pod["containers"]}
    assert len(images) == 1


def test_what_holds_nothing_of_the_wish_is_not_launched() -> None:
    nobody = NodeAvailabilitySummary({})
    score = spot_first.score({"CPU": 4}, [{"GPU": 1}], "x", node_availability_summary=nobody)
    assert score is None


class Notice(BaseHTTPRequestHandler):
    """A spot machine's metadata: that it is taken back stands there from the third look on."""

    looks = 0

    def do_PUT(self) -> None:
        is_right = self.path == "/latest/api/token"
        is_right &= "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if is_right else 400, b"a-token")

    def do_GET(self) -> None:
        assert self.path == "/latest/meta-data/spot/instance-action"
        is_known = self.headers["X-aws-ec2-metadata-token"] == "a-token"
        Notice.looks += is_known
        self._answer(200 if Notice.looks >= 3 else 404 if is_known else 401, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_a_spot_workers_notice_reaches_ray(tmp_path: Path) -> None:
    (watch,) = [c for c in GPU["worker_start_ray_commands"] if "spot/instance-action" in c]
    told = tmp_path / "told"
    for name, script in {
        "ray": f'echo "$@" > {told}.new; mv {told}.new {told}',
        "sleep": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    with ThreadingHTTPServer(("127.0.0.1", 0), Notice) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        here = f"http://127.0.0.1:{server.server_port}"
        command = watch.replace("http://169.254.169.254", here)
        command = command.replace("/tmp/spot.log", str(tmp_path / "log"))
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, "PATH": path, "RAY_HEAD_IP": "10.0.0.1"},
            check=True,
        )
        wait_until(told.exists)
        server.shutdown()
    assert Notice.looks == 3
    assert told.read_text().split() == [
        "drain-node",
        "--address=10.0.0.1:6379",
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--deadline-remaining-seconds",
        "110",
        "--reason-message",
        "spot",
    ]
