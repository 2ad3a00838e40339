"""What a trial costs the driver in PostgreSQL, on the loopback interface, against the journal.

    python -m tests.bench.storages [--quick]

Suggests at random, so that it is the storage that counts: ask, one epoch, its end. Both storages
take turns, trial by trial; medians.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from optuna.trial import TrialState

from search.storages import open_storage
from search.studies import TypeStudy
from tests.postgres_server import PASSWORD, Postgres
from tests.study_fixtures import new_study

SIZES = (100, 1000)
N_TIMED = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 trials only")
    sizes = SIZES[:1] if parser.parse_args().quick else SIZES
    os.environ["PGPASSWORD"] = PASSWORD
    server = Postgres()
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            studies = {
                name: new_study(stack.enter_context(open_storage(Path(folder) / name, uri)))
                for name, uri in (("journal", None), ("postgres", server.uri()))
            }
            found = [_measure(studies, size) for size in sizes]
    finally:
        server.remove()
    print("trials  journal ms  PostgreSQL ms  ratio")
    for row in found:
        print("{trials:6d}  {journal_ms:10.1f}  {postgres_ms:13.1f}  {ratio:5.1f}".format(**row))
    print(json.dumps({"load": os.getloadavg()[0], "sizes": found}))


def _measure(studies: dict[str, TypeStudy], size: int) -> dict[str, float]:
    """Milliseconds of a trial in studies that hold so many."""
    times: dict[str, list[float]] = {name: [] for name in studies}
    for study in studies.values():
        while len(study.trials()) < size - N_TIMED:
            _run(study)
    for _ in range(N_TIMED):
        for name, study in studies.items():
            begin = time.perf_counter()
            _run(study)
            times[name].append(time.perf_counter() - begin)
    of = {name: 1e3 * median(each) for name, each in times.items()}
    return {
        "trials": size,
        "journal_ms": of["journal"],
        "postgres_ms": of["postgres"],
        "ratio": of["postgres"] / of["journal"],
    }


def _run(study: TypeStudy) -> None:
    trial = study.ask()
    assert trial is not None
    study.record_epoch(trial.number, 1, {"val_auc": 0.5}, 0.5)
    study.finish(trial.number, TrialState.COMPLETE, value=0.5)


if __name__ == "__main__":
    main()
