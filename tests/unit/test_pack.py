import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mimimi_core.audio import AudioError, read_clip, read_file
from mimimi_core.clips import Clip, find_clips
from mimimi_core.pack import PackError, open_pack, pack_clips
from mimimi_core.splits import clip_digest
from tests.audio_fixtures import (
    noise,
    real_clips,
    write_dcase2020,
    write_dcase2021,
    write_mimii,
    write_wav,
)


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    return find_clips(write_dcase2020(tmp_path / "data"))["fan"]


def _touch(path: Path, seconds: int) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + seconds * 10**9))


@pytest.mark.parametrize("write", [write_dcase2020, write_dcase2021, write_mimii])
def test_every_clip_is_there_bit_for_bit(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (clips,) = find_clips(write(tmp_path / "data")).values()
    pack = open_pack(pack_clips(clips, tmp_path / "packs"))
    assert pack.machine_type == clips[0].machine_type
    assert pack.sample_rate == 16000
    assert pack.names == tuple(clip.name for clip in clips)
    assert pack.machine_ids == tuple(sorted({clip.machine_id for clip in clips}))
    assert [pack.machine_ids[i] for i in pack.id_index] == [clip.machine_id for clip in clips]
    assert pack.labels.tolist() == [clip.label for clip in clips]
    assert pack.digests.tolist() == [clip_digest(clip.path.read_bytes()) for clip in clips]
    for clip, start, length in zip(clips, pack.starts, pack.lengths, strict=True):
        read = read_clip(clip.path, 16000)
        np.testing.assert_array_equal(pack.samples[start : start + length], read)
    assert pack.samples.dtype == np.int16
    for array in (pack.starts, pack.lengths, pack.id_index, pack.labels):
        assert array.dtype == np.int64
        assert array.shape == (len(clips),)


def test_clips_may_differ_in_length(tmp_path: Path) -> None:
    for n in (1, 700, 33):
        write_wav(tmp_path / "fan" / "train" / f"normal_id_00_{n}.wav", noise(n, n))
    pack = open_pack(pack_clips(find_clips(tmp_path)["fan"], tmp_path))
    assert pack.lengths.tolist() == [1, 33, 700]
    assert pack.starts.tolist() == [0, 1, 34]
    assert len(pack.samples) == 734


def test_select_gives_the_clips_of_a_split(tmp_path: Path, clips: list[Clip]) -> None:
    pack = open_pack(pack_clips(clips, tmp_path / "packs"))
    splits = ("train", "holdout", "val", "test")
    together = np.concatenate([pack.select(split) for split in splits])
    assert sorted(together.tolist()) == list(range(len(clips)))
    for split in splits:
        for label in (0, 1):
            chosen = pack.select(split, label)
            assert chosen.dtype == np.int64
            assert set(pack.splits[chosen]) <= {split}
            assert set(pack.labels[chosen]) <= {label}
        both = [*pack.select(split, 0), *pack.select(split, 1)]
        assert sorted(both) == pack.select(split).tolist()
    assert pack.select("train", 1).size == 0


def test_opening_reads_no_samples(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / "fan" / "train" / f"normal_id_00_{n}.wav"
        write_wav(path, noise(n, 50_000))
    path = pack_clips(find_clips(tmp_path)["fan"], tmp_path)
    before = pa.total_allocated_bytes()
    pack = open_pack(path)
    assert pa.total_allocated_bytes() == before
    assert pack.samples.nbytes == 2_000_000
    address = pack.samples.__array_interface__["data"][0]
    regions = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(path.name)
    ]
    assert any(low <= address < address + pack.samples.nbytes <= high for low, high in regions)
    assert not pack.samples.flags.writeable


def test_packing_holds_few_clips_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dcase2020(tmp_path, n_train=20)
    clips = find_clips(tmp_path)["fan"]
    decoded: list[int] = []

    def counting(path: Path, rate: int) -> object:
        decoded.append(1)
        return read_file(path, rate)

    monkeypatch.setattr("mimimi_core.pack.read_file", counting)
    ahead: list[int] = []
    pack_clips(clips, tmp_path, on_progress=lambda done, total: ahead.append(len(decoded) - done))
    assert max(ahead) <= 1


def test_progress_counts_every_clip(tmp_path: Path, clips: list[Clip]) -> None:
    seen: list[tuple[int, int]] = []
    pack_clips(clips, tmp_path / "packs", on_progress=lambda *now: seen.append(now))
    assert seen == [(n, 14) for n in range(1, 15)]


def test_a_pack_is_reused(tmp_path: Path, clips: list[Clip]) -> None:
    first = pack_clips(clips, tmp_path / "packs")
    written = first.stat()
    again = pack_clips(clips[::-1], tmp_path / "packs", on_progress=lambda *_: pytest.fail("read"))
    assert again == first
    assert again.stat().st_mtime_ns == written.st_mtime_ns
    assert again.stat().st_ino == written.st_ino


def test_the_key_follows_the_files_and_the_rate(tmp_path: Path, clips: list[Clip]) -> None:
    packs = tmp_path / "packs"
    paths = {pack_clips(clips, packs), pack_clips(clips, packs, 8000), pack_clips(clips[1:], packs)}
    _touch(clips[0].path, 5)
    paths.add(pack_clips(clips, packs))
    write_wav(clips[0].path, noise(9, 900))
    paths.add(pack_clips(clips, packs))
    assert len(paths) == 5
    assert all(path.name.startswith("fan-") and len(path.stem) == 4 + 12 for path in paths)


def test_data_sets_that_look_alike_have_packs_of_their_own(tmp_path: Path) -> None:
    """Equal names, sizes and times of change, as of two data sets that one command wrote."""
    packs, found = tmp_path / "packs", []
    for name in ("first", "second"):
        clips = find_clips(write_dcase2020(tmp_path / name))["fan"]
        for clip in clips:
            os.utime(clip.path, ns=(0, 0))
        found.append(clips)
    write_wav(found[1][0].path, noise(9))
    os.utime(found[1][0].path, ns=(0, 0))
    first, second = (open_pack(pack_clips(clips, packs)) for clips in found)
    assert first.path != second.path
    assert first.data_hash != second.data_hash


@pytest.mark.parametrize("change", [{"machine_id": "id_99"}, {"label": 1}, {"part": "labelled"}])
def test_the_key_follows_what_a_clip_is_taken_for(
    tmp_path: Path, clips: list[Clip], change: dict[str, Any]
) -> None:
    other = [*clips[:-1], dataclasses.replace(clips[-1], **change)]
    assert other != clips
    assert pack_clips(clips, tmp_path / "packs") != pack_clips(other, tmp_path / "packs")


def test_the_data_hash_follows_content_not_time_or_name(tmp_path: Path, clips: list[Clip]) -> None:
    packs = tmp_path / "packs"
    first = open_pack(pack_clips(clips, packs))
    assert len(first.data_hash) == 16
    _touch(clips[0].path, 5)
    touched = open_pack(pack_clips(clips, packs))
    assert touched.path != first.path
    assert touched.data_hash == first.data_hash
    write_wav(clips[0].path, noise(9))
    assert open_pack(pack_clips(clips, packs)).data_hash != first.data_hash


def test_another_rate_is_resampled_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "fan" / "train"
    write_wav(home / "normal_id_00_1.wav", noise(0, 480), 48000)
    write_wav(home / "normal_id_00_2.wav", noise(1, 160), 16000)
    pack = open_pack(pack_clips(find_clips(tmp_path)["fan"], tmp_path))
    assert pack.lengths.tolist() == [160, 160]
    assert "clips resampled to 16000 Hz: 1 at 48000 Hz" in caplog.text


@pytest.mark.parametrize("n", [0, 7, 13])
def test_a_truncated_clip_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, clips: list[Clip], n: int
) -> None:
    bad = clips[n].path
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(AudioError, match=rf"^{bad}: is truncated"):
        pack_clips(clips, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_clip_that_vanished_is_refused_by_name(tmp_path: Path, clips: list[Clip]) -> None:
    clips[3].path.unlink()
    with pytest.raises(AudioError, match=rf"^{clips[3].path}: cannot be read: No such file"):
        pack_clips(clips, tmp_path / "packs")


def test_a_failure_at_the_end_leaves_nothing(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.RecordBatchFileWriter.write_batch", full)
    with pytest.raises(OSError, match="No space left"):
        pack_clips(clips, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []
    monkeypatch.undo()
    assert len(open_pack(pack_clips(clips, tmp_path / "packs")).names) == 14


def test_two_processes_may_pack_at_once(tmp_path: Path, clips: list[Clip]) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mimimi_core.clips import find_clips\n"
        "from mimimi_core.pack import pack_clips\n"
        "clips = find_clips(Path(sys.argv[1]))['fan']\n"
        "sys.stdin.readline()\n"
        "print(pack_clips(clips, Path(sys.argv[2])))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data"), str(tmp_path / "packs")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (path,) = (tmp_path / "packs").iterdir()
    assert paths == {str(path)}
    pack = open_pack(path)
    assert len(pack.names) == len(clips)
    assert len(pack.samples) == pack.lengths.sum()


def test_what_a_killed_process_had_packed_is_deleted(tmp_path: Path, clips: list[Clip]) -> None:
    folder = tmp_path / "packs"
    works = [folder / ".packing-1", folder / ".packing-2"]
    for work, hours in zip(works, (2, 0), strict=True):
        work.mkdir(parents=True)
        (work / "samples.int16").write_bytes(b"half a pack")
        for path in (work / "samples.int16", work):
            os.utime(path, (0, time.time() - 3600 * hours))
    path = pack_clips(clips, folder)
    assert sorted(folder.iterdir()) == [works[1], path]  # another process may be at it


def test_one_machine_type_per_pack(tmp_path: Path, clips: list[Clip]) -> None:
    other = find_clips(write_dcase2020(tmp_path / "more", "pump"))["pump"]
    with pytest.raises(ValueError, match=r"one machine type, got \['fan', 'pump'\]"):
        pack_clips([*clips, *other], tmp_path)
    with pytest.raises(ValueError, match="one machine type, got"):
        pack_clips([], tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"ARROW1 or not"])
def test_what_is_no_pack_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fan-0.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PackError, match=r"fan-0\.arrow: must be a pack of clips"):
        open_pack(path)


def test_an_arrow_file_of_something_else_is_refused(tmp_path: Path) -> None:
    batch = pa.record_batch({"a": pa.array([1])})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    with pytest.raises(PackError, match="must be a pack of clips"):
        open_pack(tmp_path / "a.arrow")


def test_real_recordings_keep_an_auc_in_val_and_in_test(tmp_path: Path) -> None:
    for clips in find_clips(real_clips() / "dcase2020-mini").values():
        pack = open_pack(pack_clips(clips, tmp_path))
        for split in ("val", "test"):
            normal, anomaly = (set(pack.id_index[pack.select(split, label)]) for label in (0, 1))
            assert normal & anomaly, f"{pack.machine_type}: no id has an AUC in {split}"
        trained = set(pack.id_index[pack.select("train")])
        assert len(trained) == len(pack.machine_ids)


def test_real_recordings_of_eight_channels(tmp_path: Path) -> None:
    (clips,) = find_clips(real_clips() / "mimii-mini").values()
    pack = open_pack(pack_clips(clips, tmp_path))
    assert pack.machine_ids == ("id_00",)
    assert pack.lengths.tolist() == [160_000] * 6
    assert len(pack.select("train")) == 2
