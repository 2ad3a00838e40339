"""A node's copies of packs: fetched once, checked, gone on with after a break, swept."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from search import pack_cache
from search.pack_cache import PackCacheError, cache_folder, cached_pack, digest_of, require_room

CONTENT = bytes(range(256)) * 40


class Source:
    """Brings `CONTENT`, or what is in `wrong` first; counts."""

    def __init__(self, wrong: tuple[bytes, ...] = ()) -> None:
        self.n_fetches, self._wrong = 0, list(wrong)

    def __call__(self, part: Path) -> None:
        self.n_fetches += 1
        content = self._wrong.pop(0) if self._wrong else CONTENT
        with part.open("ab") as file:
            file.write(content[file.tell() :])


@pytest.fixture
def digest(tmp_path: Path) -> str:
    (tmp_path / "whole").write_bytes(CONTENT)
    return digest_of(tmp_path / "whole")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_cache, "_checked", {})
    return tmp_path / "cache" / "mimimi-search"


def forget_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(pack_cache, "_checked", {})


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mimimi-search"


def test_a_pack_is_fetched_once(digest: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    for _ in range(2):
        path = cached_pack("fan.arrow", digest, source)
        assert path == cache / "fan.arrow"
        assert path.read_bytes() == CONTENT
        forget_checks(monkeypatch)
    assert source.n_fetches == 1
    assert not (cache / "fan.arrow.part").exists()


def test_the_others_wait_for_the_first(digest: str) -> None:
    source, begun, may_go_on = Source(), threading.Event(), threading.Event()

    def slowly(part: Path) -> None:
        begun.set()
        assert may_go_on.wait(60)
        source(part)

    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(cached_pack("fan.arrow", digest, slowly).read_bytes())
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    may_go_on.set()
    for thread in threads:
        thread.join(60)
    assert found == [CONTENT] * 3
    assert source.n_fetches == 1


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", bytes(len(CONTENT))])
def test_a_damaged_copy_is_fetched_anew(digest: str, damaged: bytes) -> None:
    source = Source()
    path = cached_pack("fan.arrow", digest, source)
    path.write_bytes(damaged)
    assert cached_pack("fan.arrow", digest, source).read_bytes() == CONTENT
    assert source.n_fetches == 2


def test_wrong_bytes_never_become_a_copy(digest: str, cache: Path) -> None:
    source = Source(wrong=(CONTENT[:-1] + b"?",))
    assert cached_pack("fan.arrow", digest, source).read_bytes() == CONTENT
    assert source.n_fetches == 2
    liar = Source(wrong=(b"x",) * 9)
    with pytest.raises(PackCacheError, match=r"pump.arrow: its bytes must have the digest"):
        cached_pack("pump.arrow", digest, liar)
    assert liar.n_fetches == 3
    assert not [path for path in cache.glob("pump*")]


def test_a_broken_download_goes_on_where_it_was(digest: str, cache: Path) -> None:
    def breaks(part: Path) -> None:
        part.write_bytes(CONTENT[:1000])
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cached_pack("fan.arrow", digest, breaks)
    assert not (cache / "fan.arrow").exists()
    lengths: list[int] = []

    def goes_on(part: Path) -> None:
        lengths.append(part.stat().st_size)
        Source()(part)

    assert cached_pack("fan.arrow", digest, goes_on).read_bytes() == CONTENT
    assert lengths == [1000]


def test_what_nobody_opened_for_a_week_goes_with_the_next_fetch(digest: str, cache: Path) -> None:
    for name in ("old", "used"):
        cached_pack(name, digest, Source())
    (cache / "broken.part").write_bytes(b"half")
    month_ago = time.time() - 30 * 86400
    for name in ("old", "used", "broken.part"):
        os.utime(cache / name, (month_ago, month_ago))
    cached_pack("used", digest, Source())  # opened again
    cached_pack("new", digest, Source())
    assert {path.name for path in cache.iterdir() if path.suffix != ".lock"} == {"used", "new"}


def test_the_end_of_another_pack_s_download_disturbs_no_fetch(
    digest: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    part = cache / "valve.arrow.part"
    part.write_bytes(b"whole")
    list_folder = Path.iterdir

    def list_and_finish(folder: Path) -> Iterator[Path]:
        found = list(list_folder(folder))
        part.replace(cache / "valve.arrow")
        yield from found

    monkeypatch.setattr(Path, "iterdir", list_and_finish)
    assert cached_pack("fan.arrow", digest, Source()).read_bytes() == CONTENT


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(free=10**9)
    monkeypatch.setattr(pack_cache.shutil, "disk_usage", lambda folder: disk)
    require_room(tmp_path, 10**9)
    with pytest.raises(PackCacheError, match=r"room for a pack of 2.00 GB, but 1.00 GB are free"):
        require_room(tmp_path, 2 * 10**9)
