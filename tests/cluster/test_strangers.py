"""Whoever is on the network without the token gets in nowhere, and the token is told to nobody."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cluster.hosts import Host
from tests.cluster.rack import Rack

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

PYTHON = Path(sys.prefix) / "bin" / "python"
CALLS = (  # one of each service of Ray that listens to other hosts
    "NodeInfoGcsService/CheckAlive",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
)
DONE, NO_SUCH_METHOD, NOT_AUTHENTICATED = "0", "12", "16"
CLOSED = {
    5000: "MLflow",
    5432: "PostgreSQL",
    8265: "Ray's dashboard and its job API",
    10001: "the port of Ray's client",
}


@pytest.fixture(scope="module")
def stranger(rack: Rack) -> Iterator[Host]:
    host = rack.network.add("stranger", with_sshd=False)
    shutil.copy(Path(__file__).with_name("raw_grpc.py"), host.home)
    yield host
    host.kill()


@pytest.fixture(scope="module")
def token(rack: Rack) -> str:
    return (rack.desk.home / ".ray" / "auth_token").read_text().strip()


def call(stranger: Host, host: Host, port: int, method: str, token: str = "") -> str:
    """The status of a gRPC call to a host."""
    ask = f"{PYTHON} raw_grpc.py {host.address} {port} /ray.rpc.{method} {token}"
    return stranger.run(ask).strip()


def post(stranger: Host, host: Host, port: int, token: str = "") -> int:
    """The status of an HTTP request to the agent that makes Ray's environments."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    ask = (
        f'import http.client as c; a = c.HTTPConnection("{host.address}", {port}); '
        f'a.request("POST", "/get_or_create_runtime_env", "x", {json.dumps(headers)}); '
        "print(a.getresponse().status)"
    )
    return int(stranger.run(f"{PYTHON} -c {shlex.quote(ask)}"))


def listening(host: Host) -> dict[int, str]:
    """Ports that are open to other hosts, and the process behind each."""
    found = {}
    for line in host.run("ss -Hltnp").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        if address != "127.0.0.1":
            found[int(port)] = line.partition('users:(("')[2].partition('"')[0]
    return found


def test_every_port_of_ray_wants_the_token(rack: Rack, stranger: Host, token: str) -> None:
    for host in (rack.head, *rack.workers):
        ports = listening(host)
        assert {"sshd", "raylet"} <= set(ports.values())
        assert ("gcs_server" in ports.values()) == (host is rack.head)
        for port, process in ports.items():
            if process.startswith("ray::RuntimeEnv"):
                assert post(stranger, host, port) == 401
                assert post(stranger, host, port, token) != 401
            elif process != "sshd":
                told = {method: call(stranger, host, port, method) for method in CALLS}
                assert sorted(set(told.values())) == [NO_SUCH_METHOD, NOT_AUTHENTICATED], process
                (method,) = (m for m, status in told.items() if status == NOT_AUTHENTICATED)
                assert call(stranger, host, port, method, token) == DONE, (process, method)


def test_rays_own_client_needs_the_token(rack: Rack, stranger: Host, token: str) -> None:
    ask = f"{PYTHON} -m ray.scripts.scripts status --address {rack.head.address}:6379 2>&1"
    assert "AuthenticationError" in stranger.run(f"RAY_AUTH_MODE=disabled {ask}", check=False)
    wrong = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token[::-1]} {ask}"
    assert "AuthenticationError" in stranger.run(wrong, check=False)
    right = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token} {ask}"
    assert "local.cluster.node" in stranger.run(right)


@pytest.mark.parametrize("port", CLOSED)
def test_what_has_no_token_listens_to_nobody_else(rack: Rack, stranger: Host, port: int) -> None:
    look = f"timeout 5 bash -c ': < /dev/tcp/{rack.head.address}/{port}' 2>&1"
    assert "refused" in stranger.run(look, check=False), f"{CLOSED[port]} answers"
    if CLOSED[port] == "MLflow":  # it does run, and answers whoever is on the head
        assert rack.head.run(f"timeout 5 bash -c ': < /dev/tcp/127.0.0.1/{port}' && echo yes")


def test_a_stranger_cannot_log_in(rack: Rack, stranger: Host) -> None:
    login = f"ssh -o StrictHostKeyChecking=no -o BatchMode=yes {rack.head.address} true 2>&1"
    assert "Permission denied" in stranger.run(login, check=False)


def test_the_token_is_told_to_nobody(rack: Rack, token: str) -> None:
    """Not by logs, files that the hosts share, MLflow's tags, or the list of processes."""
    secrets = [token, (rack.desk.home / ".ssh" / "id_ed25519").read_text().splitlines()[1]]
    hosts = (rack.head, *rack.workers)
    for place in (rack.network.shared, *(host.folder / "tmp" for host in hosts)):
        for file in place.rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            assert not any(secret.encode() in content for secret in secrets), file
    for host in hosts:
        assert "raylet" in (processes := host.run("ps -eo args"))
        assert not any(secret in processes for secret in secrets)
    client = MlflowClient(f"sqlite:///{rack.network.shared}/mlflow/mlflow.db")
    for experiment in client.search_experiments():
        told = [experiment.tags]
        for run in client.search_runs([experiment.experiment_id]):
            told += [run.data.tags, run.data.params]
        assert not any(secret in str(told) for secret in secrets)
