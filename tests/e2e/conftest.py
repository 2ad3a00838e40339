from pathlib import Path

import pytest

from mimimi_core.synth import write_synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machine types of the embedded data set, as a folder of recordings."""
    return write_synthetic(tmp_path_factory.mktemp("embedded"), ["fan", "pump"])
