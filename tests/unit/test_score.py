"""What the command that scores clips takes, prints and says."""

from pathlib import Path

import pytest

from mimimi_core.scoring import Threshold
from search import score
from tests.audio_fixtures import noise, write_wav
from tests.model_fixtures import make_detector


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A detector of fans, whose threshold lies within a millionth of a score."""
    detector = make_detector()
    value = float(detector.score([noise(0)[:, 0]], "id_00")[0]) - 1e-8
    detector.thresholds["id_00"] = Threshold(value=value, false_alarm_rate=0.1, n_normals=9)
    detector.save(tmp_path / "model")
    return tmp_path / "model"


def run(model: Path, *clips: Path, machine_type: str = "fan") -> int:
    args = ["--model", model, "--machine-type", machine_type, "--machine-id", "id_00", *clips]
    return score.main([str(arg) for arg in args])


def test_a_model_of_another_type_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, write_wav(tmp_path / "a.wav"), machine_type="valve") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--machine-type must be 'fan'" in said.err
    assert "got 'valve'" in said.err


def test_figures_are_printed_in_full_in_lines_that_a_shell_reads(
    model: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(model, write_wav(tmp_path / "a.wav", noise(0))) == 0
    out = capfdbinary.readouterr().out.decode()
    assert "\r" not in out
    _, _, value, level, decision = out.splitlines()[1].split(",")
    assert decision == "anomaly"
    assert float(value) > float(level)  # as the decision says


@pytest.mark.parametrize(
    ("untrained", "why"),
    [
        ((), "fewer than two held-out normal clips with different scores; scores only"),
        (("id_00",), "no clip of it trained the model, so its scores count for nothing"),
    ],
)
def test_an_id_without_a_threshold_has_a_reason(
    tmp_path: Path, untrained: tuple[str, ...], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = make_detector()
    detector.untrained_ids = untrained
    detector.save(tmp_path / "model")
    assert run(tmp_path / "model", write_wav(tmp_path / "a.wav", noise(0))) == 0
    assert caplog.messages == [f"id_00 has no threshold: {why}"]


def test_clips_that_are_resampled_or_repeated_are_told_once_per_kind(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fast = [write_wav(tmp_path / f"fast{i}.wav", noise(i, 1600), rate=32000) for i in range(2)]
    short = write_wav(tmp_path / "short.wav", noise(3, 100))
    assert run(model, write_wav(tmp_path / "a.wav", noise(0)), *fast, short) == 0
    assert caplog.messages == [
        f"resampled to the model's 16000 Hz: 2 of 4 clips, such as {fast[0]}",
        f"repeated, as shorter than the 288 samples of a crop: 1 of 4 clips, such as {short}",
    ]
