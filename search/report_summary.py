"""The facts about a machine type's study that a reader wants first, in words."""

from collections.abc import Mapping, Sequence

import numpy as np

from search.report_facts import LABEL_FREE, SeedFacts, TrialFacts, TypeFacts


def key_facts(facts: TypeFacts, evidence: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a reader wants first, as (name, value).

    Args:
        facts: Of the machine type.
        evidence: What was measured of a label-free objective; see `report.LABEL_FREE_EVIDENCE`.
    """
    best, winner = facts.best, facts.winner
    counts = ", ".join(f"{n} {state}" for state, n in facts.counts.items() if n)
    retried = sum(trial.attempts > 1 for trial in facts.trials)
    rows = [
        ("trials", f"{len(facts.trials)}" + (f": {counts}" if counts else "")),
        ("best of the search", _best(facts, best)),
        ("confirmed winner", _winner(winner, facts.winner_seeds) + _others(facts)),
        ("the search's best flattered itself by", _flattery(facts)),
        ("test AUC of the winner", _test_auc(facts)),
        ("champion", _champion(facts)),
        ("cost", _cost(facts)),
    ]
    if retried:
        rows.append(("retried", f"{retried}: their worker or the search was lost"))
    if facts.objective in LABEL_FREE:
        found = evidence.get(facts.objective, "not measured")
        rows.append(
            (
                "chosen without labels",
                f"by {facts.objective}; rank correlation with val_auc: {found}",
            )
        )
    return rows


def number(value: float | None) -> str:
    """A figure with three decimals."""
    return "none" if value is None else f"{value:.3f}"


def interval(interval: Sequence[float] | None, digits: int = 3) -> str:
    """Both limits in brackets."""
    if interval is None:
        return "none"
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _best(facts: TypeFacts, best: TrialFacts | None) -> str:
    if best is None:
        return "no complete trial"
    shown = number(best.value)
    if facts.objective == "val_auc" and "val_auc_low" in best.metrics:
        shown += " " + interval((best.metrics["val_auc_low"], best.metrics["val_auc_high"]))
    return f"{facts.objective} {shown}, trial {best.number} after {best.epochs} epochs"


def _winner(winner: int | None, seeds: SeedFacts | None) -> str:
    if winner is None:
        return "not chosen yet"
    if seeds is None or seeds.mean is None:
        return f"trial {winner}, not confirmed by fresh seeds"
    text = f"trial {winner}: {seeds.mean:.3f}"
    if len(seeds.values) == 1:
        return f"{text} with one fresh seed"
    spread = f"{min(seeds.values):.3f} to {max(seeds.values):.3f}"
    deviation = np.std(seeds.values, ddof=1)
    return (
        f"{text}, mean of {len(seeds.values)} fresh seeds ({spread}, "
        f"standard deviation {deviation:.3f})"
    )


def _others(facts: TypeFacts) -> str:
    """Who judges with the winner; nothing unless an ensemble was tested."""
    others = facts.outcome.get("members", [])[1:]
    return f"; trials {', '.join(map(str, others))} judge with it" if others else ""


def _flattery(facts: TypeFacts) -> str:
    best, flattery = facts.best, facts.flattery
    if best is None or flattery is None:
        return "unknown: it was not trained with fresh seeds"
    return (
        f"{flattery:+.3f} (trial {best.number}: {number(best.value)} in the search, "
        f"{best.value - flattery if best.value is not None else 0:.3f} with fresh seeds)"
    )


def _test_auc(facts: TypeFacts) -> str:
    findings = facts.outcome.get("findings", {})
    if not facts.outcome:
        return "not tested yet"
    if findings.get("test_auc") is None:
        return "none: no machine id has normal and anomalous test clips"
    counted = [row for row in facts.outcome.get("test_per_id", ()) if row["auc"] is not None]
    n_clips = sum(row["n_normal"] + row["n_anomaly"] for row in counted)
    clips = f", {n_clips} clips" if counted else ""
    return f"{number(findings['test_auc'])} {interval(findings.get('test_auc_ci'))}{clips}"


def _champion(facts: TypeFacts) -> str:
    findings = facts.outcome.get("findings", {})
    version = findings.get("champion_version")
    if findings.get("promoted"):
        return f"version {version}: this winner"
    if not facts.outcome:
        return "not decided yet"
    if version is None:
        return "none"
    if facts.outcome.get("version") is None:  # the winner was not registered
        return f"version {version}, not challenged (--promote never)"
    return f"version {version} was kept"


def _cost(facts: TypeFacts) -> str:
    cost = facts.cost(facts.trials)
    if cost is None:
        return "not recorded"
    confirmation = facts.confirmation_cost
    return f"{cost:.3g} {facts.cost_unit} for the trials" + (
        "" if confirmation is None else f", {confirmation:.3g} for the confirmation"
    )
