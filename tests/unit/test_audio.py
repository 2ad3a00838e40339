from pathlib import Path

import numpy as np
import pytest
import soundfile

from mimimi_core.audio import AudioError, decode, read_clip, read_file
from tests.audio_fixtures import noise, write_wav


def test_samples_come_back_bit_for_bit(tmp_path: Path) -> None:
    samples = noise(0)
    read = read_clip(write_wav(tmp_path / "a.wav", samples), 16000)
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, samples[:, 0])


def test_the_first_channel_of_eight_is_taken(tmp_path: Path) -> None:
    samples = noise(1, channels=8)
    read = read_clip(write_wav(tmp_path / "a.wav", samples), 16000)
    np.testing.assert_array_equal(read, samples[:, 0])
    assert read.flags.c_contiguous


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_other_encodings_keep_their_level(tmp_path: Path, subtype: str) -> None:
    samples = noise(2)[:, 0] / 32768
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype=subtype)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.wav", 16000), noise(2)[:, 0])


def test_floats_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([2.0, -2.0, 0.5]), 16000, subtype="FLOAT")
    assert read_clip(tmp_path / "a.wav", 16000).tolist() == [32767, -32768, 16384]


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("peak", [-2.1, 32767.0])
def test_floats_far_beyond_full_scale_are_refused(tmp_path: Path, peak: float, rate: int) -> None:
    """Clipped, they would be square waves."""
    samples = np.tile([0.0, peak, peak / 3], 400)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    expected = rf"a\.wav: .* in \[-1, 1\], got a peak of {abs(peak):g}: .*32768 if"
    with pytest.raises(AudioError, match=expected):
        read_clip(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_another_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    seconds = np.arange(rate) / rate
    path = write_wav(
        tmp_path / "a.wav", (8000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16), rate
    )
    read = read_clip(path, 16000)
    assert len(read) == 16000
    expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(read[500:-500], expected[500:-500], atol=80)
    assert read_file(path, 16000)[1:] == (rate, path.read_bytes())


@pytest.mark.parametrize("kept", [0, 10, 30, 44, 45, 1000, -1])
def test_a_truncated_file_is_refused_with_its_path(tmp_path: Path, kept: int) -> None:
    path = write_wav(tmp_path / "cut.wav")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AudioError, match=r"cut\.wav: (is truncated|must be a WAV file)"):
        read_clip(path, 16000)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFEFFF])
def test_a_file_that_was_written_to_a_pipe_is_not_called_truncated(
    tmp_path: Path, size: int
) -> None:
    path = write_wav(tmp_path / "piped.wav")
    raw = path.read_bytes()
    path.write_bytes(raw[:40] + size.to_bytes(4, "little") + raw[44:])
    with pytest.raises(AudioError, match=r"piped\.wav: was written to a pipe, .*: rewrite it"):
        read_clip(path, 16000)


def test_chunks_before_the_samples_are_passed_over(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav")
    raw = path.read_bytes()
    expected = read_clip(path, 16000)
    padded = raw[:36] + b"LIST\x03\x00\x00\x00abc\x00" + raw[36:]
    np.testing.assert_array_equal(decode(padded, 16000)[0], expected)
    with pytest.raises(AudioError, match="is truncated: its header promises 1600 bytes"):
        decode(padded[:-1], 16000)


def test_a_64_bit_wav_is_read_and_checked(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(3), 16000, format="RF64", subtype="PCM_16")
    np.testing.assert_array_equal(read_clip(tmp_path / "a.wav", 16000), noise(3)[:, 0])
    with pytest.raises(AudioError, match="is truncated"):
        decode((tmp_path / "a.wav").read_bytes()[:-2], 16000)


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"<html>not found</html>")
    with pytest.raises(AudioError, match=r"a\.wav: must be a WAV file, starts with b'<htm'"):
        read_clip(tmp_path / "a.wav", 16000)
    with pytest.raises(AudioError, match=r"b\.wav: cannot be read: No such file"):
        read_clip(tmp_path / "b.wav", 16000)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((0, 1), np.int16))
    with pytest.raises(AudioError, match="at least one sample"):
        read_clip(path, 16000)


def test_a_broken_header_is_refused(tmp_path: Path) -> None:
    raw = bytearray(write_wav(tmp_path / "a.wav").read_bytes())
    raw[20:22] = b"\xfe\xca"  # an encoding that does not exist
    with pytest.raises(AudioError, match="libsndfile"):
        decode(bytes(raw), 16000)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="must be finite"):
        read_clip(tmp_path / "a.wav", 16000)
