"""Stand-ins that need no torch: an analytic objective, Tune's controller, trials that misbehave.

Workers of Ray import this module, so it imports little.
"""

import json
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from search.config import SpaceFile

PARAMETERS: dict[str, Any] = {
    "train.lr": {"kind": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "network.attention": {"kind": "bool"},
    "network.attention_expansion": {
        "kind": "categorical",
        "choices": [2, 4],
        "when": {"network.attention": True},
    },
    "network.depth": {"kind": "fixed", "value": 4},
}
LOSS = """The actor died unexpectedly before finishing this task.
\tpid: 4711
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: End of file. Some common causes include: (1) the process was killed by the OOM killer."""
EVENTS = "events.jsonl"  # beside the study's checkpoints: what analytic trials did, and where


def space_file(trials: int = 4, epochs: int = 3, **sections: Any) -> SpaceFile:
    """A checked space of a few parameters of each kind; `sections` are those of a YAML file."""
    study = {"trials": trials, "epochs": epochs, **sections.pop("study", {})}
    return SpaceFile.model_validate({"study": study, "parameters": PARAMETERS, **sections})


def level_of(params: Mapping[str, Any]) -> float:
    """The AUC that a trial with these parameters would reach: best at a rate of 10**-2.5."""
    distance = abs(math.log10(params["train.lr"]) + 2.5)
    return 0.95 - 0.15 * distance - (0.0 if params.get("network.attention") else 0.05)


def result_of(epoch: int, n_epochs: int, level: float) -> dict[str, Any]:
    """What a `TrialRunner` reports after an epoch of a curve that rises to `level`."""
    auc = 0.5 + (level - 0.5) * (1 - 0.5**epoch)
    return {
        "epoch": epoch,
        "metrics": {"train_loss": 1 / epoch, "val_auc": auc, "val_auc/id_00": auc},
        "objective": auc,
        "val_auc": auc,
        "is_final": epoch >= n_epochs,
        "done": epoch >= n_epochs,
    }


class FakeTrial(Trial):  # type: ignore[misc]
    """A trial of Tune without a folder of its own."""

    error_file = ""


class FakeTune:
    """Calls searcher and scheduler as the controller of Ray Tune 2.60 does, in its order."""

    def __init__(self, searcher: Searcher, scheduler: TrialScheduler, folder: Path) -> None:
        self._searcher, self._scheduler, self._folder = searcher, scheduler, folder
        self.is_finished = False
        self.waiting: list[Trial] = []  # of the trials, those that nobody runs yet

    def get_live_trials(self) -> list[Trial]:
        """As the scheduler asks for them; only those that wait matter to it."""
        return self.waiting

    def start(self) -> "FakeTrial | None":
        """The next trial; None if the searcher has none now, or none any more."""
        self._scheduler.choose_trial_to_run(self)  # Tune does so in every turn
        trial_id = Trial.generate_id()
        config = self._searcher.suggest(trial_id)
        self.is_finished = config == Searcher.FINISHED
        if config is None or self.is_finished:
            return None
        trial = FakeTrial("double", config=config, trial_id=trial_id, stub=True)
        trial.error_file = str(self._folder / f"{trial_id}.txt")
        self._scheduler.on_trial_add(None, trial)
        return trial

    def report(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        """Hand over a result; whether the trial goes on."""
        flat = flatten_dict({"done": False, **result})
        decision = TrialScheduler.STOP
        if not flat["done"]:  # a result that is the last by itself never meets the scheduler
            decision = self._scheduler.on_trial_result(None, trial, flat)
        if decision == TrialScheduler.STOP:
            flat["done"] = True
            self._scheduler.on_trial_complete(None, trial, flat)
            self._searcher.on_trial_complete(trial.trial_id, result=flat)
        else:
            self._searcher.on_trial_result(trial.trial_id, flat)
        return bool(decision != TrialScheduler.STOP)

    def lose_worker(self, trial: Trial, retries_left: bool) -> None:
        """The worker died: the trial is put back into the queue, or given up."""
        with Path(trial.error_file).open("a") as file:
            file.write(f"Failure # 1 (occurred at noon)\n{LOSS}\n")
        self._scheduler.on_trial_error(None, trial)
        if retries_left:
            self._scheduler.on_trial_add(None, trial)
        else:
            self._searcher.on_trial_complete(trial.trial_id, error=True)


def events_of(folder: Path) -> list[dict[str, Any]]:
    """What the analytic trials of a study below that folder did, in order."""
    lines = (folder / "checkpoints" / EVENTS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def analytic_trainable(
    plan: Mapping[tuple[str, int], str] | None = None, step_s: float = 0.0
) -> type[tune.Trainable]:
    """A trainable like `TrialRunner`, with the same configuration, checkpoint and reports.

    Args:
        plan: (machine type, number) -> what is special about that trial: "meet" waits until
            another one that meets runs as well, "poor" falls behind, "nan" reports an objective
            that is none, "crash" reports a failure in its second epoch, "lose once" and "lose
            always" kill their process after the checkpoint of the second epoch.
        step_s: How long an epoch takes.
    """
    deeds = dict(plan or {})

    class AnalyticTrial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self._folder = Path(config["checkpoint"])
            self._epoch: int | None = None

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            started = time.time()
            config, state = self.config, self._folder / "state.json"
            deed = deeds.get((config["machine_type"], config["number"]))
            is_restored = self._epoch is None and state.exists()
            if is_restored:
                self._epoch = json.loads(state.read_text())
            else:
                self._epoch = (self._epoch or 0) + 1
                time.sleep(step_s)
                self._folder.mkdir(parents=True, exist_ok=True)
                state.write_text(json.dumps(self._epoch))
            if deed == "meet" and self._epoch == 1:
                self._meet()
            self._note(started)
            if deed == "crash" and self._epoch == 2:
                return {"failure": "crash: RuntimeError: boom (doubles.py:1)", "done": True}
            if deed == "lose always" and self._epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if deed == "lose once" and self._epoch == 2 and not is_restored:
                os.kill(os.getpid(), signal.SIGKILL)
            level = 0.5 if deed == "poor" else 0.9
            result = result_of(self._epoch, config["params"]["train.epochs"], level)
            if deed == "nan":
                result |= {"objective": math.nan, "val_auc": math.nan}
            return result

        def _meet(self) -> None:
            places = self._folder.parents[1] / "meeting"
            places.mkdir(exist_ok=True)
            (places / self._folder.parent.name).touch()
            deadline = time.monotonic() + 60
            while len(list(places.iterdir())) < 2:
                if time.monotonic() > deadline:
                    raise TimeoutError("the other trial does not run")
                time.sleep(0.01)

        def _note(self, started: float) -> None:
            event = {
                "machine_type": self.config["machine_type"],
                "number": self.config["number"],
                "epoch": self._epoch,
                "pid": os.getpid(),
                "started": started,
                "ended": time.time(),
            }
            with (self._folder.parents[1] / EVENTS).open("a") as file:
                file.write(json.dumps(event) + "\n")

    return AnalyticTrial
