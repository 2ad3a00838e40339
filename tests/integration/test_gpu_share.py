"""The probe of a GPU's memory through Ray, where Ray says there is one and torch sees none."""

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


@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can be measured")
def test_a_gpu_that_cannot_be_measured_is_not_shared(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"CPU": 2, "GPU": 1}'}
    environment["PYTHONPATH"] = str(ROOT)
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    auto, stated = json.loads(done.stdout.splitlines()[-1])
    assert auto == {"cpu": 1.0, "gpu": 1.0}
    assert stated == {"cpu": 1.0, "gpu": 0.5}  # nothing is measured
    assert "memory was not measured: RuntimeError: torch sees no GPU" in done.stderr
