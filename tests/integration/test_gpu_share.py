"""Ray's GPUs that are not there: their memory is probed, and who asked for none sees none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, logging, sys
from pathlib import Path

from mimimi_core.clips import find_clips
from mimimi_core.pack import open_pack, pack_clips
from search.config import Resources, load_space
from search.gpu_share import share_of_gpu
from search.launch import cluster, trial_resources
from search.shared_files import SharedFiles
from tests.audio_fixtures import write_dcase2020

logging.basicConfig(level=logging.INFO)
folder = Path(sys.argv[1])
pack = open_pack(pack_clips(find_clips(write_dcase2020(folder / "data"))["fan"], folder))
files, space = SharedFiles(folder), load_space(Path("spaces/smoke.yaml"))
with cluster(None):
    packs, shared = {"fan": pack}, {"fan": files.share(pack.path)}
    auto = trial_resources(Resources(), lambda: share_of_gpu(space, packs, shared, files))
    stated = trial_resources(Resources(gpu=0.5), lambda: 1 / 0)
print(json.dumps([auto, stated]))
"""
SEEN = """
import json, os, sys
from contextlib import suppress
from pathlib import Path

import ray

from mimimi_core.clips import find_clips
from mimimi_core.pack import open_pack, pack_clips
from search.launch import cluster
from search.lost_workers import as_task
from search.shared_files import SharedFiles, SharedFilesError
from search.trainable import finished_training, open_training
from tests.audio_fixtures import write_dcase2020
from tests.model_fixtures import TINY_PARAMS

folder = Path(sys.argv[1])
pack = pack_clips(find_clips(write_dcase2020(folder / "data"))["fan"], folder)
config = {"params": TINY_PARAMS, "objective": "val_auc", "files": str(folder), "pack": str(pack)}
config |= {"checkpoint": str(folder / "none"), "threads": 1}

def train():
    open_training(config)
    return os.environ["CUDA_VISIBLE_DEVICES"]

def judge():
    with suppress(SharedFilesError):
        finished_training(SharedFiles(folder), config["checkpoint"], open_pack(pack))
    return os.environ["CUDA_VISIBLE_DEVICES"]

with cluster(None):
    tasks = [as_task(act, {"cpu": 1.0, "gpu": gpu}) for act in (train, judge) for gpu in (0.0, 0.5)]
    found = ray.get([task.remote() for task in tasks])
print(json.dumps(found))
"""


def run(program: str, argument: str, n_gpus: int) -> subprocess.CompletedProcess[str]:
    """A program on a machine that has two cores and so many GPUs, as Ray believes."""
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": f'{{"CPU": 2, "GPU": {n_gpus}}}'}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0,1"[: 2 * n_gpus - 1]}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-c", program, argument],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.integration
def test_who_asked_for_no_gpu_sees_none(tmp_path: Path) -> None:
    trains, trains_on_one, judges, judges_on_one = json.loads(
        run(SEEN, str(tmp_path), 2).stdout.splitlines()[-1]
    )
    assert (trains, judges) == ("", "")
    assert {trains_on_one, judges_on_one} <= {"0", "1"}


@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can be measured")
def test_a_gpu_that_cannot_be_measured_is_not_shared(tmp_path: Path) -> None:
    done = run(PROGRAM, str(tmp_path), 1)
    auto, stated = json.loads(done.stdout.splitlines()[-1])
    assert auto == {"cpu": 1.0, "gpu": 1.0}
    assert stated == {"cpu": 1.0, "gpu": 0.5}  # nothing is measured
    assert "memory was not measured: RuntimeError: torch sees no GPU" in done.stderr
