"""What must hold after a search, whatever was broken on its way.

Asked trials = finished trials, none counted twice, no finished result lost, one MLflow run per
trial, the champion loads and scores. Summary, Optuna's storage and MLflow agree on all of it.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mimimi_core.detector import Detector
from search.registry import Registry
from search.storages import JOURNAL
from search.studies import ending_of

Trials = Mapping[str, list[FrozenTrial]]


def open_journal(out: Path, study: str) -> BaseStorage:
    """The storage of a study without --storage, to be read while nobody or the search writes."""
    return JournalStorage(JournalFileBackend(str(out / study / JOURNAL)))


def stored_trials(storage: BaseStorage, study: str) -> dict[str, list[FrozenTrial]]:
    """The trials of each machine type that ran or run."""
    found = {}
    for known in storage.get_all_studies():
        name, _, machine_type = known.study_name.partition("/")
        if name == study:
            trials = optuna.load_study(study_name=known.study_name, storage=storage).trials
            found[machine_type] = [t for t in trials if not _never_ran(t)]
    return found


def stored_runs(tracking_uri: str, study: str) -> list[Run]:
    """All MLflow runs of a study, parents included."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found: list[Run] = []
    token = None
    while token != "":
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        found += page
        token = page.token or ""
    return found


def check_invariant(
    summary: Mapping[str, Any], storage: BaseStorage, *, asked: int, earlier: Trials | None = None
) -> None:
    """Fail where the invariant does not hold.

    Args:
        summary: The last line of stdout of the command that ended the search, parsed.
        storage: The truth, see `open_journal`.
        asked: Trials per machine type.
        earlier: What `stored_trials` returned at some moment before.
    """
    study, uri = summary["study"], summary["tracking_uri"]
    trials = stored_trials(storage, study)
    assert set(trials) == set(summary["machine_types"])
    check_trials(trials, asked=asked, earlier=earlier)
    check_runs(trials, stored_runs(uri, study))
    for machine_type, outcome in summary["machine_types"].items():
        stand = Counter(ending_of(trial) for trial in trials[machine_type])
        assert outcome["trials"] == asked
        for ending in ("complete", "pruned", "failed"):
            assert outcome[ending] == stand[ending], (machine_type, ending)
        if outcome["complete"]:
            best = max(t.value for t in trials[machine_type] if t.state == TrialState.COMPLETE)
            assert outcome["best_val_auc"] in (best, None)
        if outcome["champion_version"] is not None:
            check_champion(uri, machine_type)


def check_trials(trials: Trials, *, asked: int, earlier: Trials | None = None) -> None:
    """All asked trials have ended, once each, and what had ended before is as it was."""
    for machine_type, found in trials.items():
        assert len(found) == asked, (machine_type, len(found))
        assert len({trial.number for trial in found}) == asked
        for trial in found:
            where = (machine_type, trial.number, trial.state.name)
            assert trial.state.is_finished(), where
            epochs = list(trial.intermediate_values)
            assert epochs == list(range(1, len(epochs) + 1)), where
            if trial.state == TrialState.COMPLETE:
                assert trial.value == trial.intermediate_values[epochs[-1]], where
    for machine_type, before in (earlier or {}).items():
        now = {trial.number: trial for trial in trials[machine_type]}
        for trial in before:
            if trial.state.is_finished():
                assert now[trial.number] == trial
            else:
                assert now[trial.number].params == trial.params
                told = trial.intermediate_values.items()
                assert told <= now[trial.number].intermediate_values.items()


def check_runs(trials: Trials, runs: list[Run]) -> None:
    """MLflow has one run per trial below one parent per machine type, and tells the same."""
    by_name = Counter(run.info.run_name for run in runs)
    numbered = {f"{name}/{t.number}": t for name, found in trials.items() for t in found}
    assert by_name == Counter([*trials, *numbered])
    parents = {run.info.run_name: run.info.run_id for run in runs if run.info.run_name in trials}
    for run in runs:
        trial = numbered.get(run.info.run_name)
        if trial is None:
            continue
        tags, name = run.data.tags, run.info.run_name
        assert tags["mlflow.parentRunId"] == parents[name.partition("/")[0]]
        assert tags["state"] == ending_of(trial), name
        assert tags["epochs"] == str(len(trial.intermediate_values)), name
        assert run.data.metrics.get("objective") == trial.value, name


def check_champion(tracking_uri: str, machine_type: str) -> None:
    """The champion of a machine type can be fetched, and scores ten seconds of noise."""
    with tempfile.TemporaryDirectory() as folder:
        model = Registry(tracking_uri).download_champion(machine_type, Path(folder))
        detector = Detector.load(model)
    noise = np.random.default_rng(0).normal(0, 3000, 10 * detector.sample_rate).astype(np.int16)
    for machine_id in detector.thresholds:
        (score,) = detector.score([noise], machine_id)
        assert math.isfinite(score)


def _never_ran(trial: FrozenTrial) -> bool:
    """Whether it was too dear for the limits of the space file."""
    is_pruned = trial.state == TrialState.PRUNED
    return is_pruned and trial.user_attrs.get("reason", "").startswith("infeasible")
