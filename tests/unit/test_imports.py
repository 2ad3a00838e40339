"""Who may import whom, read from the sources; and what an import drags in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audio_fixtures import noise, write_wav
from tests.model_fixtures import make_detector

ROOT = Path(__file__).parents[2]
PACKAGES = ("mimimi_core", "search")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 450


def _imports(source: str) -> set[str]:
    """Top-level names of all that a source imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, "relative imports hide what they import from this test"
            found.add(node.module.split(".")[0])
    return found


def _importers(*names: str) -> set[str]:
    """Modules of both packages that import any of the names, relative to the root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if _imports(path.read_text()) & set(names)
    }


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import ray.tune as t, os\n"
        "def f():\n    from mlflow.models import Model\n"
        "if TYPE_CHECKING:\n    import optuna\n"
    )
    assert _imports(source) == {"ray", "os", "mlflow", "optuna"}
    assert "mimimi_core/network.py" in _importers("torch")


def test_the_core_knows_of_no_search() -> None:
    importers = _importers("ray", "optuna", "mlflow", "pydantic", "search")
    assert {path for path in importers if path.startswith("mimimi_core/")} == set()


def test_mlflow_has_two_adapters() -> None:
    assert _importers("mlflow") == {"search/tracking.py", "search/registry.py"}


def test_one_module_reads_audio() -> None:
    assert _importers("soundfile") == {"mimimi_core/audio.py"}
    assert _importers("torchaudio") == {"mimimi_core/audio.py", "mimimi_core/frontend.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_has_a_name_and_a_size(path: Path) -> None:
    assert path.name != "utils.py"
    assert len(path.read_text().splitlines()) <= MAX_LINES


def _loaded(statement: str, *names: str) -> set[str]:
    """Which of the named packages a fresh interpreter has loaded after the statement."""
    script = f"import sys\n{statement}\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_download_does_not_wait_for_torch() -> None:
    assert _loaded("import mimimi_core.fetch", "torch", "sklearn", "pyarrow") == set()


def test_scoring_waveforms_loads_no_data_layer_and_no_search() -> None:
    heavy = (
        "torch",
        "torchaudio",
        "pyarrow",
        "soundfile",
        "pandas",
        "ray",
        "optuna",
        "mlflow",
        "search",
        "scipy.stats",
        "triton",
    )
    assert _loaded("import mimimi_core.detector", *heavy) == {"torch"}


def test_scoring_with_a_models_folder_loads_no_tracker(tmp_path: Path) -> None:
    make_detector().save(tmp_path / "fan")
    clip = write_wav(tmp_path / "clip.wav", noise(0))
    model = ["--machine-type", "fan", "--machine-id", "id_00", "--model", str(tmp_path / "fan")]
    score = f"from search.score import main; assert main({[*model, str(clip)]}) == 0"
    script = f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    {score}"
    assert _loaded(script, "mlflow", "optuna", "ray", "sqlalchemy") == set()


def test_a_dry_run_loads_no_cluster_no_tracker_and_no_compiler() -> None:
    heavy = ("ray", "mlflow", "matplotlib", "sklearn", "torchaudio", "scipy.stats", "torch._dynamo")
    run = "from search.run import main; main(['--space', 'spaces/complex.yaml', '--dry-run'])"
    script = f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    {run}"
    assert _loaded(script, *heavy) == set()


def test_the_public_names_are_there() -> None:
    import mimimi_core
    from mimimi_core import NetworkConfig, build_network

    assert mimimi_core.__all__ == ["NetworkConfig", "build_network"]
    assert build_network(NetworkConfig(channels=1), n_ids=2).total_conv.out_channels == 2
    with pytest.raises(AttributeError, match="'mimimi_core' has no attribute 'nothing'"):
        mimimi_core.nothing  # noqa: B018
