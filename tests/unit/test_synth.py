import wave
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mimimi_core import synth
from mimimi_core.audio import read_clip
from mimimi_core.clips import Clip, ManifestError, find_clips
from mimimi_core.machines import FAULTS, MACHINE_IDS, N_SAMPLES, fault_of, machine_clip
from mimimi_core.pack import open_pack, pack_clips
from mimimi_core.synth import list_synthetic, main, write_synthetic


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Clip]]:
    return find_clips(write_synthetic(tmp_path_factory.mktemp("embedded")))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip of each kind per id: enough for what is not about sound."""
    counts = (("train", "normal", 1), ("test", "normal", 1), ("test", "anomaly", 1))
    monkeypatch.setattr(synth, "CLIPS_PER_ID", counts)


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _mean_log_spectrum(clip: Clip) -> np.ndarray:
    samples = read_clip(clip.path, 16000) / 32768
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512]
    spectrum = np.fft.rfft(frames * np.hanning(1025)[:-1])
    mean: np.ndarray = np.log(np.abs(spectrum) + 1e-7).mean(0)
    return mean


@pytest.fixture(scope="module", params=list(FAULTS))
def nearest(
    request: pytest.FixtureRequest, found: dict[str, list[Clip]]
) -> tuple[list[Clip], np.ndarray]:
    """Test clips of a type and their (clips, ids) distances to the mean train normal of each id."""
    clips = found[request.param]
    spectra = np.array([_mean_log_spectrum(clip) for clip in clips])
    train = np.array([clip.part == "train" for clip in clips])
    ids = np.array([clip.machine_id for clip in clips])
    means = np.array([spectra[train & (ids == i)].mean(0) for i in MACHINE_IDS])
    distances = np.linalg.norm(spectra[~train, None] - means, axis=2)
    return [clip for clip in clips if clip.part == "labelled"], distances


def test_the_list_is_what_will_be_found(tmp_path: Path) -> None:
    listed = list_synthetic(tmp_path / "embedded", ["fan"])
    assert not (tmp_path / "embedded").exists()
    assert listed == find_clips(write_synthetic(tmp_path / "embedded", ["fan"]))
    with pytest.raises(ManifestError, match="'lathe'"):
        list_synthetic(tmp_path, ["lathe"])


def test_a_plain_detector_finds_some_faults(nearest: tuple[list[Clip], np.ndarray]) -> None:
    clips, distances = nearest
    aucs = []
    for column, machine_id in enumerate(MACHINE_IDS):
        mine = [i for i, clip in enumerate(clips) if clip.machine_id == machine_id]
        labels = [clips[i].label for i in mine]
        aucs.append(roc_auc_score(labels, distances[mine, column]))
    assert 0.6 < np.mean(aucs) < 0.9


def test_ids_can_be_told_apart_but_not_always(nearest: tuple[list[Clip], np.ndarray]) -> None:
    clips, distances = nearest
    normals = [i for i, clip in enumerate(clips) if not clip.label]
    told = [MACHINE_IDS[column] for column in distances[normals].argmin(1)]
    assert 0.6 < np.mean([told[n] == clips[i].machine_id for n, i in enumerate(normals)]) < 0.99


def test_the_set_has_four_types_of_four_ids(found: dict[str, list[Clip]]) -> None:
    assert list(found) == ["fan", "pump", "slider", "valve"]
    for clips in found.values():
        for machine_id in MACHINE_IDS:
            mine = [(c.part, c.label) for c in clips if c.machine_id == machine_id]
            assert mine.count(("train", 0)) == 40
            assert mine.count(("labelled", 0)) == 24
            assert mine.count(("labelled", 1)) == 24
            assert len(mine) == 88


def test_clips_are_four_seconds_of_16_khz_mono(found: dict[str, list[Clip]]) -> None:
    for clips in found.values():
        with wave.open(str(clips[0].path)) as file:
            assert file.getparams()[:4] == (1, 2, 16000, 64_000)


def test_no_clip_is_silent_clipped_or_repeated(found: dict[str, list[Clip]]) -> None:
    for clips in found.values():
        samples = np.array([read_clip(clip.path, 16000) for clip in clips[::5]]).astype(np.int64)
        assert np.abs(samples).max(1).min() > 1000
        assert (np.abs(samples) >= 32767).mean(1).max() < 1e-4
        assert len({row.tobytes() for row in samples}) == len(samples)


def test_every_split_has_clips_of_every_id(found: dict[str, list[Clip]], tmp_path: Path) -> None:
    for clips in found.values():
        pack = open_pack(pack_clips(clips, tmp_path))
        for split in ("val", "test"):
            for label in (0, 1):
                assert set(pack.id_index[pack.select(split, label)]) == {0, 1, 2, 3}
        assert set(pack.id_index[pack.select("train")]) == {0, 1, 2, 3}


@pytest.mark.usefixtures("few")
def test_clips_do_not_depend_on_the_types_asked_for(tmp_path: Path) -> None:
    alone = write_synthetic(tmp_path / "a", ["valve"])
    together = write_synthetic(tmp_path / "b", ["fan", "valve"])
    assert _files(alone / "valve") == _files(together / "valve")
    assert {p.name for p in alone.iterdir()} == {"valve"}


@pytest.mark.usefixtures("few")
def test_the_seed_decides_every_clip(tmp_path: Path) -> None:
    first = _files(write_synthetic(tmp_path / "a", ["pump"], seed=0))
    other = _files(write_synthetic(tmp_path / "b", ["pump"], seed=1))
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


@pytest.mark.usefixtures("few")
def test_what_is_there_is_kept(tmp_path: Path) -> None:
    write_synthetic(tmp_path, ["fan"])
    before = (tmp_path / "fan").stat().st_mtime_ns
    assert write_synthetic(tmp_path, ["fan", "slider"]) == tmp_path
    assert (tmp_path / "fan").stat().st_mtime_ns == before
    assert {p.name for p in tmp_path.iterdir()} == {"fan", "slider"}


@pytest.mark.usefixtures("few")
def test_other_clips_are_neither_kept_nor_overwritten(tmp_path: Path) -> None:
    write_synthetic(tmp_path, ["fan"])
    with pytest.raises(ManifestError, match="fan: must hold the embedded clips .* seed 3"):
        write_synthetic(tmp_path, ["fan"], seed=3)
    (tmp_path / "pump").mkdir()
    with pytest.raises(ManifestError, match="pump: must hold the embedded clips"):
        write_synthetic(tmp_path, ["pump"])
    assert list((tmp_path / "pump").iterdir()) == []


@pytest.mark.usefixtures("few")
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def failing(*args: object) -> np.ndarray:
        calls.append(args)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        return np.zeros(4, np.int16)

    monkeypatch.setattr(synth, "machine_clip", failing)
    with pytest.raises(OSError, match="No space left"):
        write_synthetic(tmp_path, ["fan"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few")
def test_another_process_may_be_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = _files(write_synthetic(tmp_path / "a", ["fan"]))
    write_type = synth._write_type

    def overtaken(home: Path, machine_type: str, seed: int) -> None:
        write_type(home, machine_type, seed)
        monkeypatch.setattr(synth, "_write_type", write_type)
        write_synthetic(tmp_path / "b", ["fan"])

    monkeypatch.setattr(synth, "_write_type", overtaken)
    assert _files(write_synthetic(tmp_path / "b", ["fan"])) == elsewhere


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="one of fan, pump, slider, valve, got 'lathe'"):
        write_synthetic(tmp_path, ["lathe"])


@pytest.mark.usefixtures("few")
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dest", str(tmp_path)]) == 0
    assert list(find_clips(tmp_path)) == list(FAULTS)
    assert main(["--dest", str(tmp_path), "--seed", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_line_refuses_what_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--dest", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--dest must be a folder that can be written: ")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("machine_type", list(FAULTS))
def test_every_fault_changes_the_sound(machine_type: str) -> None:
    normal = machine_clip(machine_type, "id_00", np.random.default_rng(0))
    assert normal.dtype == np.int16
    assert normal.shape == (N_SAMPLES,)
    assert {fault_of(machine_type, n) for n in range(24)} == set(FAULTS[machine_type])
    for fault in FAULTS[machine_type]:
        faulty = machine_clip(machine_type, "id_00", np.random.default_rng(0), fault)
        assert not np.array_equal(normal, faulty)


def test_the_drive_fault_breaks_phase_and_leaves_magnitude() -> None:
    hz = 15.625 * 185 - 4.5  # the sixth drive line of the first fan

    def line(fault: str | None) -> np.ndarray:
        samples = machine_clip("fan", "id_00", np.random.default_rng(5), fault) / 32768
        frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512] * np.hanning(1024)
        starts = np.arange(len(frames)) * 512 / 16000
        spectrum: np.ndarray = np.fft.rfft(frames)[:, 185] * np.exp(-2j * np.pi * hz * starts)
        return spectrum

    normal, faulty = line(None), line("drive")
    # a steady line keeps its phase over the whole clip, a walking one loses it
    assert np.abs(np.mean(normal / np.abs(normal))) > 0.95
    assert np.abs(np.mean(faulty / np.abs(faulty))) < 0.8
    assert np.abs(np.log(np.abs(faulty).mean() / np.abs(normal).mean())) < 0.1
