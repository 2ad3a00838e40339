"""Decides whether a candidate becomes champion, and moves the alias. Trains and tests nothing.

A champion is never replaced without a paired comparison on the candidate's test clips, but for
those that it was trained on, which can be where clips were added since.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mimimi_core.comparison import Comparison, bootstrap_interval, compare_aucs
from mimimi_core.costs import gmac_per_s
from mimimi_core.detector import Detector, DetectorError
from mimimi_core.metrics import Interval
from mimimi_core.pack import Pack
from mimimi_core.scoring import ClipScores
from search.config import PromotionConfig
from search.registry import Registry
from search.tracking import TrackingError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A detector, and what it made of the test clips of its pack."""

    detector: Detector
    pack: Pack
    test_scores: ClipScores


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a version becomes champion, and why."""

    promoted: bool
    reason: str
    against: int | None = None  # the champion's version
    comparison: Comparison | None = None
    recorded: Mapping[str, str] = field(default_factory=dict)  # tags of one that was found

    def __str__(self) -> str:
        return f"{'promoted' if self.promoted else 'kept'}: {self.reason}"

    def tags(self) -> dict[str, str]:
        """For the version and for the study's run; always all of them, so none is left over."""
        found = self.comparison
        tags = {
            "decision": str(self),
            "against": f"version {self.against}" if self.against else "none",
            "difference": shown(found.difference, found.ci) if found else "none",
            "p_value": f"{found.p_better:.4f}" if found else "none",
            "p_value_no_worse": f"{found.p_no_worse:.4f}" if found else "none",
        }
        return {name: self.recorded.get(name, value) for name, value in tags.items()}


def challenge(
    registry: Registry, machine_type: str, version: int, compare: Callable[[int], Decision]
) -> Decision:
    """Make a version champion if there is none, or if `compare` with the champion says so.

    The decision is recorded before the alias moves. If another search moves the alias meanwhile,
    the version has to face the new champion.

    Args:
        registry: Holds the versions.
        machine_type: Whose champion.
        version: The candidate's.
        compare: Judges the candidate against a version.
    """
    while True:
        champion = registry.champion(machine_type)
        if champion is None:
            rival, decision = None, Decision(promoted=True, reason="there was no champion")
        elif champion[0] == version:  # an earlier call was killed right after it moved the alias
            decided = champion[1].get("decision", "promoted: it is the champion")
            reason = decided.removeprefix("promoted: ")
            return Decision(promoted=True, reason=reason, recorded=champion[1])
        else:
            rival = champion[0]
            decision = compare(rival)
        registry.set_tags(machine_type, version, decision.tags())
        if not decision.promoted or registry.replace_champion(machine_type, rival, version):
            return decision
        logger.info("%s: the champion changed meanwhile, comparing again", machine_type)


def compare_with_champion(
    registry: Registry, version: int, candidate: Candidate, settings: PromotionConfig
) -> Decision:
    """Judge a candidate against the champion on the candidate's test clips.

    Clips that trained the champion count for neither, and the reason tells how many they are.
    A champion that cannot be compared stays: whoever wants another one moves the alias by hand.
    """

    def keep(reason: str) -> Decision:
        return Decision(promoted=False, reason=" ".join(reason.split()), against=version)

    pack, machine_type = candidate.pack, candidate.pack.machine_type
    try:
        with TemporaryDirectory() as folder:
            champion = Detector.load(registry.download(machine_type, version, Path(folder)))
    except (DetectorError, TrackingError) as error:
        return keep(f"version {version} cannot be read: {error}")
    rate = champion.sample_rate
    if rate != pack.sample_rate:
        return keep(f"version {version} hears {rate} Hz, these clips have {pack.sample_rate} Hz")
    lost = [i for i in champion.judged_ids if i not in candidate.detector.judged_ids]
    if lost:
        return keep(
            f"version {version} also judges {', '.join(lost)}, of which there is no training clip"
        )
    tested = candidate.test_scores
    known = np.array([machine_id in champion.judged_ids for machine_id in pack.machine_ids])
    common = known[tested.id_index]
    unseen = common & np.isin(tested.clips, champion.unseen(pack, tested.clips))
    n_seen = int(common.sum() - unseen.sum())
    without = f"; test clips left out as they trained it: {n_seen}" if n_seen else ""
    clips, id_index = tested.clips[unseen], tested.id_index[unseen]
    ours, labels = tested.scores[unseen], pack.labels[clips]
    theirs = champion.score_pack(pack, clips).scores
    if not np.isfinite(theirs).all():
        return keep(f"version {version} gives scores that are not finite")
    found = compare_aucs(ours, theirs, labels, id_index, settings.margin)
    if found is None:
        return keep(
            f"no machine id has both labels among the test clips version {version} knows{without}"
        )
    cheaper = _work(champion) / _work(candidate.detector)
    promoted, reason = judge(found, cheaper, settings)
    check = bootstrap_interval(ours, theirs, labels, id_index)
    return Decision(
        promoted=promoted,
        reason=f"{reason} (version {version}; bootstrap {shown(found.difference, check)}{without})",
        against=version,
        comparison=found,
    )


def judge(found: Comparison, cheaper: float, settings: PromotionConfig) -> tuple[bool, str]:
    """Whether to promote, and why.

    Args:
        found: The paired comparison on the test clips.
        cheaper: The champion's work per second of sound over the candidate's.
        settings: Of the space file.
    """
    level, margin = settings.level, settings.margin
    difference = f"{shown(found.difference, found.ci)} on the same {found.n_clips} clips"
    if found.p_better <= level:
        return True, f"better, test_auc {difference}, p {found.p_better:.3f} <= {level:g}"
    kept = f"not better, test_auc {difference}, p {found.p_better:.3f} > {level:g}"
    if cheaper < settings.cheaper:
        return False, f"{kept}; {cheaper:.3g} times as cheap, {settings.cheaper:g} times is asked"
    if found.p_no_worse <= level:
        return True, (
            f"no worse and {cheaper:.3g} times as cheap, test_auc {difference}, "
            f"p {found.p_no_worse:.3f} <= {level:g} that it loses {margin:g}"
        )
    return False, (
        f"{kept}; {cheaper:.3g} times as cheap, but it may lose {margin:g}, "
        f"p {found.p_no_worse:.3f} > {level:g}"
    )


def _work(detector: Detector) -> float:
    n_ids = len(detector.machine_ids)
    return sum(gmac_per_s(member.config, n_ids) for member in detector.members)


def shown(difference: float, ci: Interval) -> str:
    """A difference of AUCs, never without its interval: `+0.012 [-0.003, +0.027]`."""
    return f"{difference:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]"
