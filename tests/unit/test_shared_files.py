"""Packs and checkpoints that all nodes share: in a folder, in a store, in one that refuses."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from search import pack_cache, shared_files
from search.shared_files import PATIENCE_S, SharedFiles, SharedFilesError
from tests.store_fixtures import Clock, Faulty

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Faulty:
    handler = Faulty()
    connected = (fs.PyFileSystem(handler), "bucket/prefix")
    monkeypatch.setattr(shared_files, "_connect", lambda root: connected)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_cache, "_checked", {})
    return handler


@pytest.fixture
def files(store: Faulty, clock: Clock) -> SharedFiles:
    return SharedFiles("s3://bucket/prefix")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "packs" / "fan-0123456789ab.arrow"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


def writes(content: bytes) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return save


def read(files: SharedFiles, name: str) -> bytes | None:
    return files.read(name, lambda path: path.read_bytes() if path.exists() else None)


def make(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> SharedFiles:
    if kind == "store":
        return request.getfixturevalue("files")
    return SharedFiles(tmp_path if kind == "folder" else (tmp_path / "a b").as_uri())


@pytest.mark.parametrize("kind", ["folder", "file URI", "store"])
def test_a_file_is_what_was_written_last(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files = make(kind, tmp_path, request)
    name = files.name("s", "checkpoints", "00001") + "/state.pt"
    files.probe()
    assert read(files, name) is None
    for content in (b"first", b"second"):
        files.write(name, writes(content))
        assert read(SharedFiles(files.root), name) == content
    files.delete(files.name("s", "checkpoints", "00001"))
    files.delete(files.name("s", "checkpoints", "00001"))  # nothing there: nothing happens
    assert read(files, name) is None


@pytest.mark.parametrize("kind", ["folder", "file URI", "store"])
def test_a_pack_is_shared_once_and_is_whole_on_every_node(
    kind: str, tmp_path: Path, pack: Path, request: pytest.FixtureRequest
) -> None:
    files = make(kind, tmp_path, request)
    name = files.share(pack)
    assert files.share(pack) == name
    assert SharedFiles(files.root).fetch(name).read_bytes() == CONTENT


def test_a_pack_below_a_shared_folder_is_used_in_place(tmp_path: Path, pack: Path) -> None:
    files = SharedFiles(tmp_path / "out")
    assert files.fetch(files.share(pack)) == pack
    assert files.name("s", "x") == str(tmp_path / "out" / "s" / "x")


def test_a_pack_is_named_by_its_content_and_uploaded_once(
    files: SharedFiles, store: Faulty, pack: Path
) -> None:
    name = files.share(pack)
    (key,) = store.memory.store
    assert key == f"/bucket/prefix/{name}"
    same = pack.with_name("fan-ba9876543210.arrow")  # packed by another driver, from copies
    same.write_bytes(CONTENT)
    store.refusals["write"] = 1
    assert files.share(same) == name
    assert store.refusals["write"] == 1
    same.write_bytes(CONTENT[::-1])
    assert files.share(same) != name


def test_an_upload_that_broke_off_is_made_again(
    files: SharedFiles, store: Faulty, pack: Path
) -> None:
    name = files.share(pack)
    store.memory.pipe(f"/bucket/prefix/{name}", CONTENT[:100])
    assert files.fetch(files.share(pack)).read_bytes() == CONTENT


def test_refusals_are_waited_for_with_growing_pauses(
    files: SharedFiles, store: Faulty, clock: Clock, pack: Path
) -> None:
    store.refusals = {"write": 7, "look": 2}
    name = files.share(pack)
    assert clock.pauses == [1, 2] + [1, 2, 4, 8, 16, 30, 30]
    store.refusals = {"look": 1, "read": 2}
    assert files.fetch(name).read_bytes() == CONTENT
    store.refusals = {"write": 1}
    files.write("x/state.pt", writes(b"state"))
    store.refusals = {"read": 1}
    assert read(files, "x/state.pt") == b"state"


def test_a_download_in_parts_asks_again_only_for_the_part_that_broke(
    files: SharedFiles, store: Faulty, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_files, "_PART_BYTES", 1000)
    name = files.share(pack)
    store.refusals["read"] = 3
    assert files.fetch(name).read_bytes() == CONTENT
    assert store.n_reads == 3 + 11  # 10240 bytes in parts of 1000


def test_a_store_that_refuses_for_good_is_given_up(
    files: SharedFiles, store: Faulty, clock: Clock
) -> None:
    store.refusals = {"write": 10**6, "read": 10**6, "look": 10**6}
    with pytest.raises(SharedFilesError, match=r"prefix must let this machine write x/state\.pt"):
        files.write("x/state.pt", writes(b"state"))
    assert clock.now == PATIENCE_S
    with pytest.raises(SharedFilesError, match=r"refused for 0 s: AWS Error SLOW_DOWN during"):
        files.write("x/state.pt", writes(b"state"), patience_s=0.0)
    assert clock.now == PATIENCE_S
    with pytest.raises(SharedFilesError, match=r"read x/state\.pt"):
        read(files, "x/state.pt")
    with pytest.raises(SharedFilesError, match=r"look for packs/fan-0\.arrow"):
        files.fetch("packs/fan-0.arrow")


def test_a_folder_that_refuses_is_asked_again(tmp_path: Path, clock: Clock) -> None:
    files = SharedFiles(tmp_path)
    name = files.name("s", "state.pt")
    files.write(name, writes(b"state"))
    tried = []

    def look(path: Path) -> bytes:
        tried.append(path)
        if len(tried) < 3:
            raise OSError(errno.EIO, "Input/output error")
        return path.read_bytes()

    assert files.read(name, look) == b"state"
    assert clock.pauses == [1, 2]


def test_a_pack_that_somebody_deleted_is_said(files: SharedFiles, store: Faulty) -> None:
    with pytest.raises(SharedFilesError, match=r"it is not there .* repeat the search's command"):
        files.fetch("packs/fan-0.arrow")


@pytest.mark.parametrize("below", ["", "below"], ids=["a file", "below a file"])
def test_a_node_whose_cache_folder_cannot_be_used_says_so(
    below: str, files: SharedFiles, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = files.share(pack)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / below))
    with pytest.raises(SharedFilesError, match=r"prefix: .*file.* set XDG_CACHE_HOME on the nodes"):
        files.fetch(name)


def test_a_node_without_a_temporary_folder_says_so(
    files: SharedFiles, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(shared_files.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(SharedFilesError, match=r"read x/state\.pt.* No usable temporary directory"):
        read(files, "x/state.pt")
    assert clock.now == PATIENCE_S  # a disk that is full may have room yet


def test_a_delete_that_is_refused_is_no_failure(files: SharedFiles, store: Faulty) -> None:
    files.write("s/a/state.pt", writes(b"state"))
    store.refusals["delete"] = 1
    files.delete("s/a")
    assert read(files, "s/a/state.pt") == b"state"


@pytest.mark.parametrize("kind", ["write", "read", "delete"])
def test_storage_that_forbids_something_is_refused_at_once(
    kind: str, files: SharedFiles, store: Faulty, clock: Clock
) -> None:
    store.refusals[kind] = 1
    with pytest.raises(SharedFilesError, match=rf"could not {kind} \.probe-\w+: AWS Error SLOW_"):
        files.probe()
    assert clock.pauses == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SharedFilesError, match=r"may write, read and delete"):
        SharedFiles(tmp_path / "file" / "below").probe()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:hush@bucket/prefix",
        "s3://hush@bucket/prefix",
        "gs://hush@bucket",
        "abfs://container:hush@account.dfs.core.windows.net/x",
        "abfs://:hush@account.dfs.core.windows.net/x",
        "s3://bucket/prefix?secret_key=hush",
        "abfs://container@account.dfs.core.windows.net/x?sig=hush",
        "s3://bucket/prefix?hush",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SharedFilesError, match="credentials") as refusal:
        SharedFiles(uri)
    assert "hush" not in str(refusal.value)
    assert "AKIA" not in str(refusal.value)


@pytest.mark.parametrize("uri", ["http://x/y", "hdfs://x/y", "s4://b/x"])
def test_other_kinds_of_storage_are_refused(uri: str) -> None:
    with pytest.raises(SharedFilesError, match=r"must be a folder or begin with s3://, gs://"):
        SharedFiles(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/prefix?region=eu-west-1&endpoint_override=127.0.0.1:9000&scheme=http",
        "abfs://container@account.dfs.core.windows.net/x",
        "gs://bucket",
    ],
)
def test_a_uri_alone_connects_to_nothing(uri: str) -> None:
    files = SharedFiles(uri)
    assert files.root == uri
    assert files.name("s", "x") == "s/x"


def test_what_we_add_to_a_uri_is_known_to_pyarrow() -> None:
    local = "region=eu-west-1&endpoint_override=127.0.0.1:9&scheme=http"
    store, prefix = shared_files._connect(f"s3://bucket/prefix?{local}")
    assert (store.type_name, prefix) == ("s3", "bucket/prefix")
    assert shared_files._connect("gs://bucket/prefix")[0].type_name == "gcs"
    abfs = "abfs://container@account.dfs.core.windows.net/x"
    assert shared_files._connect(abfs)[1] == "container/x"
