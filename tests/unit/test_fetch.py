import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mimimi_core import fetch as module
from mimimi_core.clips import find_clips
from mimimi_core.fetch import FetchError, fetch, main
from tests.audio_fixtures import write_dcase2020


class Server(ThreadingHTTPServer):
    """Serves `files`; `break_after` cuts answers, in turn, after so many bytes (None: whole)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.break_after: list[int | None] = []
        self.knows_range = True
        self.status: list[int] = []  # errors to answer first
        self.requests: list[str | None] = []  # the Range header of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.requests.append(wanted)
        body = self.server.files.get(self.path.removeprefix("/files/"))
        if self.server.status:
            return self.send_error(self.server.status.pop(0))
        if body is None:
            return self.send_error(404)
        first = 0
        if wanted and self.server.knows_range:
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if first >= len(body):
                return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        cut = self.server.break_after.pop(0) if self.server.break_after else None
        self.wfile.write(body[first:] if cut is None else body[first : first + cut])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "MD5", dict(module.MD5))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _offer(server: Server, machine_type: str, body: bytes) -> None:
    """Serve an archive and take its md5 for the published one."""
    server.files[f"dev_data_{machine_type}.zip"] = body
    module.MD5[machine_type] = hashlib.md5(body).hexdigest()


@pytest.fixture
def archive(server: Server, tmp_path: Path) -> bytes:
    """A fan archive in the published layout, offered by the server."""
    root = write_dcase2020(tmp_path / "source")
    clips = sorted((root / "fan").rglob("*.wav"))
    body = _zip({clip.relative_to(root).as_posix(): clip.read_bytes() for clip in clips})
    _offer(server, "fan", body)
    return body


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("archive")
def test_an_archive_becomes_clips(server: Server, tmp_path: Path) -> None:
    fetch(tmp_path / "data", ["fan"], server.url)
    assert len(find_clips(tmp_path / "data")["fan"]) == 14
    assert _names(tmp_path / "data") == {"dev_data_fan"}
    source = tmp_path / "source" / "fan" / "train" / "normal_id_00_00000000.wav"
    fetched = tmp_path / "data" / "dev_data_fan" / "fan" / "train" / source.name
    assert fetched.read_bytes() == source.read_bytes()


@pytest.mark.usefixtures("archive")
def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    _offer(server, "pump", _zip({"pump/a.txt": b"a"}))
    fetch(tmp_path, ["fan"], server.url)
    fetch(tmp_path, ["fan", "pump"], server.url)
    assert server.requests == [None, None]
    assert {"dev_data_fan", "dev_data_pump"} <= _names(tmp_path)


def test_breaks_are_resumed_where_they_happened(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.break_after = [1000, 500, 0, 2000]
    fetch(tmp_path, ["fan"], server.url)
    assert server.requests == [None, *(f"bytes={n}-" for n in (1000, 1500, 1500, 3500))]
    assert len(find_clips(tmp_path / "dev_data_fan")["fan"]) == 14


def test_a_later_call_resumes(server: Server, archive: bytes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server.break_after = [1000, *[0] * 5]
    with pytest.raises(FetchError, match=r"fan\.zip: .* 1000 bytes are kept.*repeat the command"):
        fetch(data, ["fan"], server.url)
    assert _names(data) == {".dev_data_fan.zip.part"}
    server.requests.clear()
    fetch(data, ["fan"], server.url)
    assert server.requests == ["bytes=1000-"]
    assert _names(data) == {"dev_data_fan"}


def test_a_whole_archive_that_was_not_unpacked_is_used(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / ".dev_data_fan.zip.part").write_bytes(archive)
    fetch(data, ["fan"], server.url)
    assert server.requests == [f"bytes={len(archive)}-"]
    assert _names(data) == {"dev_data_fan"}


@pytest.mark.usefixtures("archive")
def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path) -> None:
    server.knows_range = False
    server.break_after = [1000, 700]
    fetch(tmp_path / "data", ["fan"], server.url)
    assert server.requests == [None, "bytes=1000-", "bytes=700-"]
    assert len(find_clips(tmp_path / "data")["fan"]) == 14


@pytest.mark.usefixtures("archive")
def test_wrong_bytes_are_removed(server: Server, tmp_path: Path) -> None:
    server.files["dev_data_fan.zip"] = b"not what was published"
    data = tmp_path / "data"
    with pytest.raises(FetchError, match=r"dev_data_fan\.zip: md5 must be [0-9a-f]{32}, got"):
        fetch(data, ["fan"], server.url)
    assert _names(data) == set()


@pytest.mark.usefixtures("archive")
def test_a_stale_rest_cannot_spoil_the_archive(server: Server, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / ".dev_data_fan.zip.part").write_bytes(b"of an older version")
    with pytest.raises(FetchError, match="md5 must be"):
        fetch(data, ["fan"], server.url)
    fetch(data, ["fan"], server.url)
    assert len(find_clips(data)["fan"]) == 14


@pytest.mark.parametrize("name", ["../evil.txt", "fan/../../evil.txt", "/evil.txt", "..\\evil.txt"])
def test_paths_that_leave_the_folder_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    _offer(server, "fan", _zip({"fan/train/a.wav": b"a", name: b"evil"}))
    data = tmp_path / "data"
    with pytest.raises(FetchError, match=r"evil\.txt', which leaves its folder"):
        fetch(data, ["fan"], server.url)
    assert _names(data) == {".dev_data_fan.zip.part"}
    assert _names(tmp_path) == {"data"}


def test_what_is_no_archive_is_refused(server: Server, tmp_path: Path) -> None:
    _offer(server, "fan", b"a page that says sorry")
    with pytest.raises(FetchError, match="must be a zip archive"):
        fetch(tmp_path / "data", ["fan"], server.url)


def test_a_missing_file_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"dev_data_valve\.zip: the server answers 404"):
        fetch(tmp_path, ["valve"], server.url)
    assert len(server.requests) == 1


@pytest.mark.usefixtures("archive")
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = [503, 429]
    fetch(tmp_path / "data", ["fan"], server.url)
    assert len(server.requests) == 3


def test_a_server_that_stays_away_ends_in_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, types = server.url.replace(str(server.server_port), "1"), "fan"
    arguments = ["--dest", str(tmp_path), "--machine-types", types, "--base-url", url]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "refused" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("archive")
def test_the_command_line_says_the_licence(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dest", str(tmp_path / "data"), "--base-url", server.url]
    assert main([*arguments, "--machine-types", "fan"]) == 0
    out, err = capsys.readouterr()
    assert "CC BY-NC-SA 4.0" in out
    assert err == ""
    assert main([*arguments, "--machine-types", "fan,lathe"]) == 2
    assert "one of fan, pump, slider, valve, got 'lathe'" in capsys.readouterr().err
