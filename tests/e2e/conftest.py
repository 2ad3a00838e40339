import os
from pathlib import Path

import pytest

from mimimi_core.synth import write_synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machine types of the embedded data set, as a folder of recordings."""
    return write_synthetic(tmp_path_factory.mktemp("embedded"), ["fan", "pump"])


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Real recordings; they are never part of the project."""
    folder = Path(os.environ.get("MIMIMI_REAL_CLIPS", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real clips in {folder}: set MIMIMI_REAL_CLIPS")
    return folder
