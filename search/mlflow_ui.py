"""What MLflow's web pages need to show a search well: columns, addresses, names of metrics.

Pure text; `search/tracking.py` stores it.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from urllib.parse import quote

VIEW = "trials"  # name of the shared view of the table of runs
_VIEW_PARAMS = 25  # columns; of a view MLflow stores 20,000 characters, older servers 5,000
_LOCAL_UI = "http://127.0.0.1:5000"
_MODE = "workflowType=machine_learning"


def view_state(params: Sequence[str]) -> str:
    """The state of MLflow's table of runs: which columns, in which order, how wide."""
    columns = [f"metrics.`{n}`" for n in ("best_val_auc", "test_auc", "val_auc", "val_pauc")]
    columns += ["tags.`state`", "tags.`epochs`"]
    columns += [f"params.`{name}`" for name in params[:_VIEW_PARAMS]]
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: max(80, 7 * len(column) - 40) for column in columns},  # pixels
    }
    return json.dumps(state, separators=(",", ":"))


def metric_name(name: str) -> str:
    """A metric's name as MLflow takes it.

    A character that it refuses, as in `val_auc/id_3(left)`, becomes "-", and a digest at the end
    tells apart what that makes alike.
    """
    plain = re.sub(r"[^/\w.\- :]", "-", name)
    if plain == name:
        return name
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def links(
    tracking_uri: str,
    experiment_id: str,
    best_runs: Mapping[str, Sequence[str]],
    model_names: Sequence[str],
) -> list[str]:
    """Addresses of the table of runs, each type's best trials side by side, the models.

    Args:
        tracking_uri: Without a password; for a database the command that serves it comes first.
        experiment_id: MLflow's.
        best_runs: Machine type -> ids of the runs to compare.
        model_names: Registered models.
    """
    lines, base = [], tracking_uri
    if not base.startswith("http"):
        lines.append(f"mlflow ui --backend-store-uri {shlex.quote(base)}")
        base = _LOCAL_UI
    runs_page = f"{base}/#/experiments/{experiment_id}/runs"
    lines.append(f"{runs_page}?viewStateShareKey={VIEW}&{_MODE}")
    for run_ids in best_runs.values():
        runs = ",".join(f'"{run_id}"' for run_id in run_ids)
        query = f'?runs=[{runs}]&experiments=["{experiment_id}"]&{_MODE}'
        if len(run_ids) > 1:
            lines.append(f"{base}/#/compare-runs{quote(query, safe='?=&,')}")
    return lines + [f"{base}/#/models/{quote(name, safe='')}" for name in model_names]
