"""Owns the cut of the clips into splits. Decides by what a clip holds, never by where it lies.

A copy of a recording under another name has the same digest, so it falls on the same side; where
folders say that one copy trains and another is labelled, the one that trains is left out.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from mimimi_core.clips import Clip

logger = logging.getLogger(__name__)

Split = Literal["train", "holdout", "val", "test", "unused"]

_HOLDOUT_SHARE = 10  # one train normal in so many is held out,
_LEAST_HOLDOUT = 2  # but so many, which a threshold needs,
_LEAST_TO_SHARE = 10  # unless the id has fewer train normals than this: then all train


def clip_digest(raw: bytes) -> int:
    """64-bit digest of a file's bytes."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")


def assign_splits(clips: Sequence[Clip], digests: Sequence[int]) -> list[Split]:
    """The split of each clip of one machine type, in the order given.

    - A labelled clip is `val` or `test` by one bit of its digest alone: it never changes sides
      when clips are added, and each id and label is cut in about half.
    - Of an id's train normals, the tenth with the smallest digests is `holdout`: kept from
      training, for thresholds and for objectives without labels. Two at least, none of few.
    - Where the layout has no train and test folders (MIMII), an id's anomalies are labelled, and
      so are as many of its normals, those with the smallest digests, but at most half of them.
      So a normal may become labelled, or train, when clips are added: a detector remembers what
      trained it.
    - A train clip of which any id has a labelled copy is `unused`, and a warning says so.

    Args:
        clips: Any number of ids.
        digests: `clip_digest` of each clip.
    """
    by_id: dict[str, list[int]] = defaultdict(list)
    for i, clip in enumerate(clips):
        by_id[clip.machine_id].append(i)
    labelled = {i for members in by_id.values() for i in _labelled(clips, digests, members)}
    heard = {digests[i] for i in labelled}
    copies = [i for i in range(len(clips)) if i not in labelled and digests[i] in heard]
    _tell(clips, copies)
    splits: list[Split] = ["train"] * len(clips)
    for i in labelled:
        splits[i] = "val" if digests[i] & 1 else "test"
    for i in copies:
        splits[i] = "unused"
    for members in by_id.values():
        train = [i for i in members if splits[i] == "train"]
        for i in _smallest(digests, train, _n_holdout(len(train))):
            splits[i] = "holdout"
    return splits


def _labelled(clips: Sequence[Clip], digests: Sequence[int], members: Sequence[int]) -> set[int]:
    """Indices of one id's clips that belong to val or test."""
    unsplit = [i for i in members if clips[i].part == "unsplit"]
    anomalies = [i for i in unsplit if clips[i].label]
    normals = [i for i in unsplit if not clips[i].label]
    labelled = {i for i in members if clips[i].part == "labelled"} | set(anomalies)
    return labelled | _smallest(digests, normals, min(len(anomalies), len(normals) // 2))


def _tell(clips: Sequence[Clip], copies: Sequence[int]) -> None:
    if copies:
        logger.warning(
            "%s: train clips left out, as labelled ones are copies of them: %d, such as %s",
            clips[copies[0]].machine_type,
            len(copies),
            clips[copies[0]].name,
        )


def _n_holdout(n_train: int) -> int:
    if n_train < _LEAST_TO_SHARE:
        return 0
    return max(_LEAST_HOLDOUT, n_train // _HOLDOUT_SHARE)


def _smallest(digests: Sequence[int], members: Sequence[int], n: int) -> set[int]:
    """The n members with the smallest digests, and all that share the digest of the last.

    By digest, not by rank, so that two copies of a recording stay together.
    """
    if not n:
        return set()
    largest = sorted(digests[i] for i in members)[n - 1]
    return {i for i in members if digests[i] <= largest}
