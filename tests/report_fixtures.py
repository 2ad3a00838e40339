"""Journals of searches that never ran, written with Optuna itself.

Trials rise to a level that their parameters set; every state, ending and note that a report shows
is there if asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search.report_facts import TypeFacts, read_facts
from search.storages import JOURNAL

EPOCHS = 9
RUNGS = (1, 3)  # epochs after which the poor are stopped
SECONDS = 36.0  # of an epoch: a hundred of them are an hour
RESOURCES = {"cpu": 1.0, "gpu": 0.0}
OUTCOME = {
    "winner": 0,
    "is_confirmed": True,
    "version": 2,
    "findings": {
        "test_auc": 0.8,
        "test_auc_ci": [0.7, 0.9],
        "champion_version": 2,
        "promoted": True,
    },
    "test_per_id": [
        {"machine_id": "id_00", "auc": 0.9, "ci": [0.8, 0.97], "n_normal": 30, "n_anomaly": 20},
        {"machine_id": "id_02", "auc": 0.7, "ci": [0.55, 0.8], "n_normal": 31, "n_anomaly": 25},
        {"machine_id": "id_04", "auc": None, "ci": None, "n_normal": 9, "n_anomaly": 0},
    ],
}


def facts_of(folder: Path) -> TypeFacts:
    """Of a study of one machine type."""
    (facts,) = read_facts(folder)
    return facts


def open_journal(folder: Path) -> JournalStorage:
    """The journal in a study's folder, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def make_study(folder: Path, machine_type: str = "fan", **options: Any) -> optuna.Study:
    """A study with its identity and the resources of a trial.

    Args:
        folder: Of the search.
        machine_type: Whose study it is.
        options: `objective`, `second_objective`, `resources`, `directions`.
    """
    study = optuna.create_study(
        storage=open_journal(folder),
        study_name=f"{folder.name}/{machine_type}",
        directions=options.get("directions", ["maximize"]),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    objective = options.get("objective", "val_auc")
    study.set_user_attr("identity", {"objective": objective, "study": {"epochs": EPOCHS}})
    study.set_user_attr("resources", options.get("resources", RESOURCES))
    if "second_objective" in options:
        study.set_user_attr("second_objective", options["second_objective"])
    return study


def ask(study: optuna.Study) -> optuna.Trial:
    """A trial with a parameter of each kind, one of them conditional, one fixed."""
    trial = study.ask()
    trial.suggest_float("train.lr", 1e-4, 1e-1, log=True)
    trial.suggest_int("network.channels", 15, 45, step=15)
    trial.suggest_categorical("frontend.normalization", ["none", "rms"])
    if trial.suggest_categorical("augment.mixing", [False, True]):
        trial.suggest_float("augment.mixing_p", 0.1, 1.0)
    trial.set_user_attr("fixed", {"network.depth": 4})
    return trial


def run(
    trial: optuna.Trial,
    level: float,
    epochs: int = EPOCHS,
    last: Mapping[str, float] | None = None,
    seconds: float | None = SECONDS,
) -> float:
    """Report a curve towards `level`; `last` are more metrics of the last epoch.

    Returns:
        The objective after the last epoch.
    """
    value = 0.5
    for epoch in range(1, epochs + 1):
        value = 0.5 + (level - 0.5) * (1 - 0.5**epoch)
        metrics: dict[str, float] = {"train_loss": 1 / epoch, "val_auc": value}
        metrics |= {"val_auc_low": value - 0.1, "val_auc_high": value + 0.05, "timestamp_ms": 1.0}
        if seconds is not None:
            metrics["seconds"] = seconds
        if epoch == epochs:
            metrics |= last or {}
        trial.set_user_attr(f"epoch/{epoch}", metrics)
        trial.report(value, epoch)
    return value


def level_of(params: Mapping[str, Any]) -> float:
    """What a trial with these parameters reaches: most at a rate of 10**-2.5."""
    distance = abs(np.log10(params["train.lr"]) + 2.5)
    return float(0.9 - 0.12 * distance - (0.0 if params["augment.mixing"] else 0.06))


def fill(study: optuna.Study, n_trials: int) -> None:
    """Trials as a search with successive halving leaves them, ties and accidents left out."""
    rng = np.random.default_rng(1)
    seen: dict[int, list[float]] = {rung: [] for rung in RUNGS}
    for _ in range(n_trials):
        trial = ask(study)
        level = level_of(trial.params) + 0.02 * float(rng.standard_normal())
        stop = EPOCHS
        for rung in RUNGS:
            seen[rung].append(level)
            if level < np.median(seen[rung]):
                stop = rung
                break
        channels = trial.params["network.channels"]
        trial.set_user_attr("second_objective", 1e6 * channels**2)
        noisy = {
            "id_swap_auc": level + 0.05 * float(rng.standard_normal()),
            "normal_log_likelihood": -level + 0.02 * float(rng.standard_normal()),
        }
        value = run(trial, level, stop, noisy if stop == EPOCHS else None)
        if stop == EPOCHS:
            values = [value, 1e6 * channels**2][: len(study.directions)]
            study.tell(trial.number, values)
        else:
            trial.set_user_attr("reason", f"stopped by the scheduler after epoch {stop}")
            study.tell(trial.number, state=TrialState.PRUNED)


def add_accidents(study: optuna.Study) -> None:
    """A crash, one that never fitted, one out of memory, one still running, one retried."""
    crashed = ask(study)
    run(crashed, 0.7, 2)
    crashed.set_user_attr("reason", "crash: RuntimeError: <boom> & | more (trial.py:1)")
    study.tell(crashed.number, state=TrialState.FAIL)
    for reason, epochs in (("infeasible: 9.1 M parameters, at most 5 M", 0), ("out of memory", 1)):
        infeasible = ask(study)
        run(infeasible, 0.6, epochs)
        infeasible.set_constraint("memory", 1.0)
        infeasible.set_user_attr("reason", reason)
        study.tell(infeasible.number, state=TrialState.PRUNED)
    running = ask(study)
    run(running, 0.75, 2)
    running.set_user_attr("attempts", 2)


def confirm(study: optuna.Study, number: int, *values: float | None) -> None:
    """Note what fresh seeds made of a trial; None is a seed that failed."""
    for index, value in enumerate(values):
        note: dict[str, Any] = {"failure": "crash"}
        if value is not None:
            note = {"objective": value, "metrics": {}, "seconds": 10 * SECONDS}
        study.set_user_attr(f"confirmation/{number}/{index}", note)


def best_numbers(study: optuna.Study, k: int) -> list[int]:
    """The k best complete trials."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return [t.number for t in sorted(complete, key=lambda t: -t.values[0])[:k]]


def make_full_study(folder: Path, machine_type: str = "fan", n_trials: int = 40) -> optuna.Study:
    """Everything that a report can show, with a winner that was tested."""
    study = make_study(folder, machine_type, second_objective="macs_per_s")
    fill(study, n_trials)
    add_accidents(study)
    first, second, third = best_numbers(study, 3)
    value = study.trials[first].values[0]
    confirm(study, first, value - 0.06, value - 0.02)
    confirm(study, second, value - 0.01, value - 0.03)
    confirm(study, third, value, None)
    study.set_user_attr("outcome", OUTCOME | {"winner": second})
    return study
