"""Owns reading one WAV file; the only file that knows soundfile. Keeps nothing."""

import io
import struct
from pathlib import Path

import numpy as np
import soundfile

_FULL_SCALE = 32768.0  # int16 units of a float sample of 1.0
_LARGEST_PEAK = 2.0  # of floats: an overshoot is clipped, beyond this they are in another unit
_PIPED = 0x7FFFE000  # bytes, promised at least by sox and ffmpeg where they cannot seek


class AudioError(ValueError):
    """A clip cannot be read: missing, truncated, empty, not audio or not in [-1, 1]."""


def read_clip(path: Path, sample_rate: int) -> np.ndarray:
    """The first channel of a clip as (N,) int16 at `sample_rate`; MIMII's arrays have 8.

    Args:
        path: A file.
        sample_rate: Hz; another rate in the file is resampled.

    Raises:
        AudioError: The clip cannot be read; the message starts with the path.
    """
    return read_file(path, sample_rate)[0]


def read_file(path: Path, sample_rate: int) -> tuple[np.ndarray, int, bytes]:
    """`read_clip`, with the rate in Hz that the file itself has, and its bytes.

    Raises:
        AudioError: As `read_clip`.
    """
    try:
        raw = path.read_bytes()
        return *decode(raw, sample_rate), raw
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror}") from error
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error


def decode(raw: bytes, sample_rate: int) -> tuple[np.ndarray, int]:
    """`read_clip` of a file's bytes, with the rate in Hz that the file itself has.

    Raises:
        AudioError: As `read_clip`, without a path.
    """
    _require_whole(raw)
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            rate: int = file.samplerate
            is_ready = file.subtype == "PCM_16" and rate == sample_rate
            # libsndfile does not scale floats that are read as integers: scale them here
            samples = file.read(dtype="int16" if is_ready else "float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioError(f"must be a WAV file that libsndfile decodes: {error}") from error
    if not len(samples):
        raise AudioError("must hold at least one sample, holds none")
    samples = np.ascontiguousarray(samples[:, 0])
    return (samples if is_ready else _to_int16(samples, rate, sample_rate)), rate


def _to_int16(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise AudioError("samples must be finite, found NaN or infinity")
    peak = np.abs(samples).max()
    if peak > _LARGEST_PEAK:
        raise AudioError(
            f"samples must lie in [-1, 1], got a peak of {peak:g}: divide them by what full scale "
            "is in their unit (32768 if they are int16 counts), the same for all clips"
        )
    if rate != sample_rate:
        # here, because importing them takes seconds that a start without resampling need not pay
        import torch
        import torchaudio

        resampled = torchaudio.functional.resample(torch.from_numpy(samples), rate, sample_rate)
        samples = resampled.numpy()
    scaled = np.rint(samples * _FULL_SCALE)
    return np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _require_whole(raw: bytes) -> None:
    """Refuse a header that promises more than there is: libsndfile would read what is left."""
    if not raw:
        raise AudioError("must be a WAV file, is empty")
    if raw[:4] not in (b"RIFF", b"RF64") or raw[8:12] != b"WAVE":
        raise AudioError(f"must be a WAV file, starts with {raw[:4]!r}")
    position, size_64 = 12, 0
    while position + 8 <= len(raw):
        name, size = struct.unpack_from("<4sI", raw, position)
        position += 8
        if name == b"ds64" and position + 16 <= len(raw):
            size_64 = struct.unpack_from("<Q", raw, position + 8)[0]
        if name == b"data":
            promised = size_64 if raw[:4] == b"RF64" else size
            if promised <= len(raw) - position:
                return
            if promised >= _PIPED:
                raise AudioError(
                    "was written to a pipe, so its header does not tell its length: rewrite it, "
                    "for example with sox IN.wav OUT.wav"
                )
            raise AudioError(
                f"is truncated: its header promises {promised} bytes of samples, "
                f"{len(raw) - position} are there; copy the file again"
            )
        position += size + size % 2
    raise AudioError("is truncated: no samples follow its header; copy the file again")
