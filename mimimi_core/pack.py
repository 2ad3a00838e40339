"""Owns packed clips: one memory-mapped Arrow IPC file per machine type. Changes no samples.

Every trial on a node maps the same file, so its samples are in memory once and a trial starts in
milliseconds. The file is uncompressed and holds a single record batch, which makes the samples of
all clips one contiguous view of it.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mimimi_core.audio import AudioError, read_file
from mimimi_core.clips import Clip
from mimimi_core.splits import assign_splits, clip_digest

logger = logging.getLogger(__name__)

_UNFINISHED = ".packing-"
_ABANDONED_S = 3600.0  # since the last clip of an unfinished pack
FORMAT = 3  # of the file and of the rules that fill it; raise it and every pack is built anew


class PackError(ValueError):
    """A file is not a pack, or none can be written."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pack:
    """The clips of one machine type; arrays are (n,), a row per clip, sorted by name."""

    path: Path
    machine_type: str
    sample_rate: int  # Hz
    data_hash: str  # 16 hex: what was heard, of which machine, with which label and split
    names: tuple[str, ...]
    machine_ids: tuple[str, ...]  # sorted; the ids of all clips
    samples: np.ndarray  # (total,) int16, all clips end to end, read from the file when touched
    starts: np.ndarray  # int64, first sample of each clip in `samples`
    lengths: np.ndarray  # int64, samples of each clip
    id_index: np.ndarray  # int64, into `machine_ids`
    labels: np.ndarray  # int64, 0 normal, 1 anomaly
    splits: np.ndarray  # str, see `splits.Split`
    digests: np.ndarray  # uint64, `clip_digest` of each clip's file

    def select(self, split: str, label: int | None = None) -> np.ndarray:
        """Indices of the clips of a split, ascending, (n,) int64; of one label if it is given."""
        chosen = self.splits == split
        if label is not None:
            chosen = chosen & (self.labels == label)
        return np.flatnonzero(chosen)

    @property
    def trained(self) -> np.ndarray:
        """Ids that have clips to train on, ascending int64 indices into `machine_ids`."""
        return np.unique(self.id_index[self.select("train", label=0)])

    @property
    def untrained_ids(self) -> tuple[str, ...]:
        """Ids without: all that a network learns is that no training clip is of theirs."""
        return tuple(np.delete(self.machine_ids, self.trained).tolist())


def open_pack(path: Path) -> Pack:
    """Map a pack that `pack_clips` wrote; reads no samples.

    Raises:
        PackError: The file is missing or no pack.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        about = json.loads(batch.schema.metadata[b"mimimi"])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise PackError(
            f"{path}: must be a pack of clips; delete it to rebuild: {error}"
        ) from error
    waveforms = batch.column("samples")
    offsets = waveforms.offsets.to_numpy()
    machine_ids, id_index = np.unique(batch.column("machine_id").to_pylist(), return_inverse=True)
    return Pack(
        path=path,
        machine_type=about["machine_type"],
        sample_rate=about["sample_rate"],
        data_hash=about["data_hash"],
        names=tuple(batch.column("name").to_pylist()),
        machine_ids=tuple(str(machine_id) for machine_id in machine_ids),
        samples=waveforms.values.to_numpy(zero_copy_only=True),
        starts=offsets[:-1],
        lengths=np.diff(offsets),
        id_index=id_index.astype(np.int64),
        labels=batch.column("label").to_numpy().astype(np.int64),
        splits=np.array(batch.column("split").to_pylist()),
        digests=batch.column("digest").to_numpy(),
    )


def pack_clips(
    clips: Sequence[Clip],
    folder: Path,
    sample_rate: int = 16000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the clips of one machine type as `<type>-<key>.arrow`, or find that it is written.

    Memory stays bounded however many clips there are; the folder needs twice their space for a
    moment. A failure leaves no pack behind; what a killed process left, a later call deletes.

    Args:
        clips: At least one, all of one machine type.
        folder: Made if it is missing.
        sample_rate: Hz of the pack; clips at another rate are resampled and a warning says so.
        on_progress: Called with (clips read, clips in all).

    Returns:
        The pack. Its key covers the format, the rate and each clip's path, name, size, time of
        change and what it is taken for, so clips that move are packed anew.

    Raises:
        AudioError: A clip cannot be read; the message starts with its path.
    """
    machine_types = {clip.machine_type for clip in clips}
    if len(machine_types) != 1:
        raise ValueError(f"a pack must hold one machine type, got {sorted(machine_types)}")
    clips = sorted(clips, key=lambda clip: clip.name)
    path = folder / f"{clips[0].machine_type}-{_key(clips, sample_rate)}.arrow"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as work:
        raw = Path(work, "samples.int16")
        digests, lengths, rates = [], [], Counter[int]()
        with raw.open("wb") as file:
            for clip in clips:
                samples, rate, content = read_file(clip.path, sample_rate)
                file.write(samples.data)
                digests.append(clip_digest(content))
                lengths.append(len(samples))
                rates[rate] += 1
                if on_progress is not None:
                    on_progress(len(digests), len(clips))
        finished = Path(work, path.name)
        _write(finished, clips, digests, lengths, raw, sample_rate)
        finished.replace(path)
    del rates[sample_rate]
    if rates:
        found = ", ".join(f"{n} at {rate} Hz" for rate, n in sorted(rates.items()))
        logger.warning("%s: clips resampled to %d Hz: %s", path.stem, sample_rate, found)
    return path


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed had packed; others may be packing at this moment."""
    for work in folder.glob(f"{_UNFINISHED}*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            changed = max(path.stat().st_mtime for path in (work, *work.iterdir()))
            if time.time() - changed > _ABANDONED_S:
                shutil.rmtree(work)


def _key(clips: Sequence[Clip], sample_rate: int) -> str:
    about: list[object] = [FORMAT, sample_rate]
    for clip in clips:
        try:
            status = clip.path.stat()
        except OSError as error:
            raise AudioError(f"{clip.path}: cannot be read: {error.strerror}") from error
        about.append([str(clip.path.absolute()), clip.name, status.st_size, status.st_mtime_ns])
        about.append([clip.machine_id, clip.label, clip.part])
    return hashlib.blake2b(json.dumps(about).encode(), digest_size=6).hexdigest()


def _write(
    path: Path,
    clips: Sequence[Clip],
    digests: Sequence[int],
    lengths: Sequence[int],
    raw: Path,
    sample_rate: int,
) -> None:
    """Write the record batch, its samples straight from the mapped file `raw`."""
    splits = assign_splits(clips, digests)
    rows = sorted(
        (digest, clip.machine_id, clip.label, split)
        for digest, clip, split in zip(digests, clips, splits, strict=True)
    )
    about = {
        "machine_type": clips[0].machine_type,
        "sample_rate": sample_rate,
        "data_hash": hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest(),
    }
    with pa.memory_map(str(raw)) as mapped:
        samples = pa.Array.from_buffers(pa.int16(), sum(lengths), [None, mapped.read_buffer()])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    batch = pa.record_batch(
        {
            "name": pa.array([clip.name for clip in clips]),
            "machine_id": pa.array([clip.machine_id for clip in clips]),
            "label": pa.array([clip.label for clip in clips], pa.int8()),
            "split": pa.array(splits),
            "digest": pa.array(digests, pa.uint64()),
            "samples": pa.LargeListArray.from_arrays(offsets, samples),
        }
    ).replace_schema_metadata({"mimimi": json.dumps(about)})
    # allow_64bit: a large machine type has more than 2^31 samples
    options = pa.ipc.IpcWriteOptions(allow_64bit=True)
    with pa.OSFile(str(path), "wb") as sink:
        with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
