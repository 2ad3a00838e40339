"""The joint classifier beside one classifier per machine type, on the same test clips."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimimi_core.metrics import interval_of_mean
from search.data import JOINT
from search.report_facts import TypeFacts
from search.report_sections import Section
from search.report_summary import interval, number


def joint_section(types: Sequence[TypeFacts]) -> Section | None:
    """Both winners' test AUC per machine type; None where there are not both."""
    per_id = {facts.machine_type: facts.outcome.get("test_per_id", ()) for facts in types}
    rows = []
    for machine_type, own in per_id.items():
        names = {f"{machine_type}_{row['machine_id']}" for row in own}
        theirs = [row for row in per_id.get(JOINT, ()) if row["machine_id"] in names]
        if machine_type != JOINT and own and theirs:
            rows.append((machine_type, *_mean(own), *_mean(theirs)))
    if not rows:
        return None
    return Section(
        title="One joint classifier beside one per machine type",
        text=("The winners on the test clips, means over machine ids; both met the same clips.",),
        header=("machine type", "its own", "95 % interval", "joint", "95 % interval"),
        rows=tuple(rows),
        is_wide=True,
    )


def _mean(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    known = [row for row in rows if row["auc"] is not None]
    if not known:
        return "none", "none"
    aucs = np.array([row["auc"] for row in known])
    return number(float(aucs.mean())), interval(interval_of_mean(aucs, [r["ci"] for r in known]))
