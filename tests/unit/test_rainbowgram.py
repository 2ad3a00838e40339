"""Rainbowgrams: lines where the tones are, one colour where the phase runs evenly."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mimimi_core.audio import read_clip
from mimimi_core.rainbowgram import (
    BINS_PER_OCTAVE,
    HOP,
    LOWEST_HZ,
    RANGE_DB,
    Rainbowgram,
    main,
    rainbowgram,
    rainbowgram_figure,
)
from tests.audio_fixtures import noise, real_clips, write_wav

RATE = 16000
PNG = b"\x89PNG"


def hum(frequency: float, wander: float = 0.0, n_samples: int = 2 * RATE) -> np.ndarray:
    """int16: a tone whose phase walks at random, `wander` rad per hop."""
    steps = np.random.default_rng(0).standard_normal(n_samples) * wander / HOP**0.5
    phase = 2 * np.pi * frequency * np.arange(n_samples) / RATE + np.cumsum(steps)
    return np.round(8000 * np.sin(phase)).astype(np.int16)


def bin_of(frequency: float) -> int:
    return round(BINS_PER_OCTAVE * np.log2(frequency / LOWEST_HZ))


def mean_turn(found: Rainbowgram, frequency: float, within: slice) -> complex:
    """Mean over frames of a bin's turns as points of a circle: its length is their steadiness."""
    return complex(np.exp(1j * np.pi * found.turns[bin_of(frequency), within]).mean())


@pytest.mark.parametrize("frequency", [150.0, 440.0, 3000.0, 6500.0])
def test_a_tone_is_a_line_at_its_frequency_and_of_one_colour(frequency: float) -> None:
    found = rainbowgram(hum(frequency), RATE)
    assert found.intensity.shape == found.turns.shape
    assert abs(int(found.intensity.mean(axis=1).argmax()) - bin_of(frequency)) <= 1
    assert found.intensity.max() == 1
    turn = mean_turn(found, frequency, slice(40, -40))
    assert abs(turn) > 0.999
    assert np.angle(turn / np.exp(2j * np.pi * frequency * HOP / RATE)) == pytest.approx(0, abs=0.1)


def test_a_tone_whose_phase_wanders_changes_its_colour() -> None:
    steadiness = [
        abs(mean_turn(rainbowgram(hum(1000, wander), RATE), 1000, slice(20, -20)))
        for wander in (0.0, 0.5, 1.5)
    ]
    assert steadiness[0] > 0.999
    assert steadiness[0] > steadiness[1] + 0.01 > steadiness[2] + 0.1


def test_a_line_at_half_a_turn_per_hop_has_one_colour_too() -> None:
    frequency = 16.5 * RATE / HOP  # phases of +pi and -pi alike
    figure = rainbowgram_figure([("half", hum(frequency))], RATE)
    line = figure.axes[0].images[0].get_array()[bin_of(frequency), 40:-40].astype(float)
    assert line.std(axis=0).max() < 20  # of 255; the circle of colours is not quite closed
    assert line.max() > 200


def test_level_is_relative_to_the_loudest() -> None:
    quieter = np.concatenate([hum(1000), hum(1000) // 10])  # by 20 dB
    level = rainbowgram(quieter, RATE).intensity[bin_of(1000)]
    assert level[40:85] == pytest.approx(1, abs=0.02)
    assert level[165:210] == pytest.approx(1 - 20 / RANGE_DB, abs=0.02)


def test_silence_is_black() -> None:
    assert not rainbowgram(np.zeros(RATE, np.int16), RATE).intensity.any()


@pytest.mark.parametrize("n_samples", [1, 255, 800, 20000])
def test_short_clips_have_a_frame_per_hop(n_samples: int) -> None:
    found = rainbowgram(noise(0, n_samples)[:, 0], RATE)
    assert found.turns.shape[1] == max(1, n_samples // HOP)
    assert np.isfinite(found.turns).all()


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_bins_reach_almost_to_the_highest_frequency(rate: int) -> None:
    n_bins = len(rainbowgram(noise(0, rate)[:, 0], rate).turns)
    assert 0.44 * rate < LOWEST_HZ * 2 ** (n_bins / BINS_PER_OCTAVE) <= 0.46 * rate


def test_a_figure_has_a_panel_per_clip_and_says_where_there_is_none() -> None:
    clips = [(f"clip {n}", hum(500, n_samples=4000)) for n in range(4)] + [("no clip", None)]
    figure = rainbowgram_figure(clips, RATE, columns=3)
    assert isinstance(figure, Figure)
    panels = figure.axes[:6]
    assert [axes.get_title() for axes in panels] == [title for title, _ in clips] + [""]
    assert [len(axes.images) for axes in panels] == [1, 1, 1, 1, 0, 0]
    assert panels[0].get_xlim() == (0, 4000 / RATE)
    ticks = {label.get_text(): label.get_position()[1] for label in panels[0].get_yticklabels()}
    assert ticks["5000"] - ticks["500"] == pytest.approx(BINS_PER_OCTAVE * np.log2(10))


def test_dollars_in_a_name_are_no_formula(tmp_path: Path) -> None:
    figure = rainbowgram_figure([("a_$5_and_$.wav", hum(500, n_samples=4000))], RATE)
    figure.savefig(tmp_path / "clips.png")
    assert figure.axes[0].get_title() == "a_$5_and_$.wav"


def test_command_draws_clips_of_any_length_and_rate(tmp_path: Path) -> None:
    clips = [
        write_wav(tmp_path / "a.wav", hum(700)),
        write_wav(tmp_path / "b.wav", noise(1, 30000, channels=2), rate=44100),
    ]
    out = tmp_path / "new" / "clips.png"
    assert main([*map(str, clips), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(PNG)
    assert list(out.parent.iterdir()) == [out]


def test_command_refuses_what_is_no_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    out = tmp_path / "clips.png"
    assert main([str(tmp_path / "text.wav"), "--out", str(out)]) == 2
    assert "text.wav" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["clips.mp3", "clips"])
def test_command_refuses_a_format_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    clip = write_wav(tmp_path / "a.wav")
    assert main([str(clip), "--out", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert ".png" in said


def test_command_refuses_a_folder_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_wav(tmp_path / "a.wav")
    assert main([str(clip), "--out", str(clip / "clips.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_real_fan_hums_in_one_colour_from_clip_to_clip() -> None:
    """Paper, Fig. 1: "intense and identically colored continuous lines" of normal id_06."""
    clips = sorted((real_clips() / "dcase2020-mini" / "fan").glob("*/normal_id_06_*"))
    assert len(clips) == 6
    turns = [
        mean_turn(rainbowgram(read_clip(path, RATE), RATE), 571, slice(None)) for path in clips
    ]
    assert min(map(abs, turns)) > 0.95
    assert abs(np.mean([turn / abs(turn) for turn in turns])) > 0.99
