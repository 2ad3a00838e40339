"""Shared storage as pyarrow sees S3, and searches on nodes that share nothing else."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from search import pack_cache, shared_files
from search.shared_files import SharedFiles, SharedFilesError
from tests.audio_fixtures import write_dcase2020
from tests.invariant import check_invariant, open_journal
from tests.s3_fixtures import ACCESS, BUCKET, DENIED, Reply, Request, S3Server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
N_TRIALS, EPOCHS = 4, 3
SPACE = f"""
study: {{trials: {N_TRIALS}, epochs: {EPOCHS}}}
sampler: {{name: random}}
scheduler: {{name: asha, grace_epochs: 1, reduction_factor: 2}}
confirmation: {{top: 1, seeds: 1}}
resources: {{cpu: 1}}
parameters:
  network.channels: {{kind: int, low: 2, high: 4}}
  network.depth: {{kind: fixed, value: 3}}
  frontend.n_fft: {{kind: fixed, value: 64}}
  frontend.hop: {{kind: fixed, value: 64}}
  frontend.n_frames: {{kind: fixed, value: 8}}
  train.lr: {{kind: float, low: 1e-3, high: 1e-2, log: true}}
  train.precision: {{kind: fixed, value: fp32}}
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        with S3Server().running() as server:
            yield server


@pytest.fixture(autouse=True)
def right(s3: S3Server) -> Iterator[None]:
    """Every test begins with a server that does what it should."""
    s3.fault = None
    s3.requests.clear()
    yield
    s3.fault = None


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of three parts and a bit; on a node of its own, which pauses shortly."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_cache, "_checked", {})
    monkeypatch.setattr(shared_files, "_PART_BYTES", 100_000)
    monkeypatch.setattr(shared_files, "_LONGEST_PAUSE_S", 0.1)
    path = tmp_path / "fan-0123456789ab.arrow"
    path.write_bytes(b"".join(hashlib.sha256(bytes([n % 251])).digest() for n in range(9500)))
    return path


def write_state(path: Path) -> None:
    path.write_bytes(b"state")


def once(fault: Reply, part_of_path: str) -> Any:
    """A fault of the first download."""
    left = [fault]

    def misbehave(request: Request) -> Reply | None:
        is_meant = request.method == "GET" and part_of_path in request.path and request.range
        return left.pop() if is_meant and left else None

    return misbehave


def test_s3_keeps_what_is_written(s3: S3Server, pack: Path) -> None:
    files = SharedFiles(s3.uri("basics"))
    files.probe()
    assert s3.keys("basics/") == []
    name = files.share(pack)
    files.share(pack)
    assert s3.keys("basics/") == [f"basics/{name}"]
    n_bytes = sum(r.n_bytes for r in s3.reads("basics/packs"))
    assert n_bytes == 0
    for _ in range(2):
        assert files.fetch(name).read_bytes() == pack.read_bytes()
    assert sum(r.n_bytes for r in s3.reads("basics/packs")) == pack.stat().st_size
    state = files.name("s", "checkpoints", "fan", "00000")
    files.write(f"{state}/state.pt", write_state)
    assert files.read(f"{state}/state.pt", Path.read_bytes) == b"state"
    files.delete(state)
    assert not files.read(f"{state}/state.pt", Path.exists)


def test_a_write_that_s3_refuses_is_not_taken_for_done(s3: S3Server) -> None:
    files = SharedFiles(s3.uri("refusing"))
    s3.fault = lambda request: Reply() if request.method == "PUT" else None
    with pytest.raises(SharedFilesError, match=r"must let this machine write s/state\.pt"):
        files.write("s/state.pt", write_state, 0.0)
    assert s3.keys("refusing/") == []


@pytest.mark.parametrize(
    "fault", [Reply(lacks=50_000), Reply(changes=True), Reply()], ids=["cut", "wrong bytes", "503"]
)
def test_a_download_that_goes_wrong_ends_right(fault: Reply, s3: S3Server, pack: Path) -> None:
    files = SharedFiles(s3.uri("wrong"))
    name = files.share(pack)
    s3.fault = once(fault, "wrong/packs")
    assert files.fetch(name).read_bytes() == pack.read_bytes()
    ranges = Counter(r.range for r in s3.reads("wrong/packs"))
    # wrong bytes are seen at the end of the whole file; anything else costs one part at most
    again = {True: 2, False: 1}[fault.changes]
    assert ranges["bytes=200000-299999"] == again


def test_forbidden_and_absent_storage_is_refused_before_any_work(
    s3: S3Server, tmp_path: Path
) -> None:
    s3.fault = lambda request: (
        Reply("403 Forbidden", DENIED) if request.method in ("PUT", "POST") else None
    )
    with pytest.raises(SharedFilesError, match=r"could not write .*ACCESS_DENIED"):
        SharedFiles(s3.uri("forbidden")).probe()
    s3.fault = None
    with pytest.raises(SharedFilesError, match=r"could not write .*NO_SUCH_BUCKET"):
        SharedFiles(s3.uri("x").replace(BUCKET, "no-such-bucket")).probe()


@dataclass(frozen=True)
class Story:
    """A search on two nodes, whose store refuses to be written for a while."""

    out: Path
    pack_bytes: int
    summary: dict[str, Any]
    said: str
    requests: list[Request]
    refused: list[float]  # when, seconds
    kept: list[str]  # keys of objects
    caches: list[set[str]]


class Outage:
    """Refuses all writes for some seconds from the first checkpoint of a trial on."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._ends: float | None = None
        self.refused: list[float] = []

    def __call__(self, request: Request) -> Reply | None:
        if request.method not in ("PUT", "POST") or "state.pt" not in request.path:
            return None
        with self._lock:
            now = time.monotonic()
            self._ends = self._ends or now + self._seconds
            if now > self._ends:
                return None
            self.refused.append(now)
            return Reply()


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, s3: S3Server
) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as patch:  # of the cluster that other tests share
        patch.delenv("RAY_OVERRIDE_RESOURCES", raising=False)
        yield _tell(tmp_path_factory, empty_store, s3)


def _tell(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, s3: S3Server) -> Story:
    home = tmp_path_factory.mktemp("story")
    write_dcase2020(home / "data", n_train=4, n_test=6)
    (home / "tiny.yaml").write_text(SPACE)
    out = home / "runs"
    out.mkdir()
    (out / "mlflow.db").write_bytes(empty_store.read_bytes())
    s3.requests.clear()
    outage = s3.fault = Outage(60.0)
    caches = [home / "cache_a", home / "cache_b"]
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for cache in caches:
            cluster.add_node(num_cpus=1, env_vars={"XDG_CACHE_HOME": str(cache)})
        options = ["--space", home / "tiny.yaml", "--data", home / "data", "--out", out]
        options += ["--study", "s", "--address", cluster.address]
        options += ["--storage-path", s3.uri("team")]
        run = subprocess.run(
            [sys.executable, "-m", "search.run", *map(str, options)],
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(home / "cache_driver")},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        cluster.shutdown()
    assert run.returncode == 0, run.stderr
    (pack,) = (out / "packs").glob("*.arrow")
    return Story(
        out,
        pack.stat().st_size,
        json.loads(run.stdout.splitlines()[-1]),
        run.stdout + run.stderr,
        list(s3.requests),
        outage.refused,
        s3.keys("team/"),
        [{path.name for path in cache.rglob("*.arrow")} for cache in caches],
    )


def test_nothing_is_lost_while_the_store_refuses(story: Story) -> None:
    assert len(story.refused) >= 3
    check_invariant(story.summary, open_journal(story.out, "s"), asked=N_TRIALS)
    assert story.summary["machine_types"]["fan"]["failed"] == 0
    assert story.summary["machine_types"]["fan"]["test_auc"] is not None


def test_each_node_fetches_the_pack_once(story: Story) -> None:
    assert [len(cache) for cache in story.caches] == [1, 1]
    reads = [r for r in story.requests if r.method == "GET" and "/team/packs/" in r.path]
    assert sum(r.n_bytes for r in reads) == 2 * story.pack_bytes
    uploads = [r for r in story.requests if r.method == "PUT" and "/team/packs/" in r.path]
    assert len([r for r in uploads if not r.path.endswith("/")]) == 1


def test_only_what_can_win_is_kept(story: Story) -> None:
    complete = story.summary["machine_types"]["fan"]["complete"]
    kept = Counter(key.split("/")[2] for key in story.kept if key.startswith("team/s/"))
    assert kept == {"checkpoints": complete, "confirmation": 1}
    assert not (story.out / "s" / "checkpoints").exists()  # nothing by path


def test_no_secret_is_written_down(story: Story) -> None:
    for secret in (ACCESS["AWS_ACCESS_KEY_ID"], ACCESS["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in story.said
        for path in story.out.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def test_a_state_costs_few_requests(s3: S3Server) -> None:
    """pyarrow asks the server for every piece that is read, and so 10 MB once cost 154."""
    files, name = SharedFiles(s3.uri("costs")), "s/checkpoints/fan/00000/state.pt"

    def save(path: Path) -> None:
        path.write_bytes(bytes(2_000_000))

    files.write(name, save)
    assert len(files.read(name, Path.read_bytes)) == 2_000_000
    assert Counter(r.method for r in s3.requests) == {"PUT": 1, "HEAD": 1, "GET": 1}
