"""A password on a command line is refused, and not repeated."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from search.run import main
from search.tracking import TrackingError, store_errors
from search.uris import UriError, require_no_password, sqlite_uri
from tests.audio_fixtures import write_dcase2020

SMOKE = Path(__file__).parents[2] / "spaces" / "smoke.yaml"
SECRET = "hunter2"
WITH_PASSWORD = [
    f"postgresql://user:{SECRET}@host:5432/db",
    f"postgresql://user:{SECRET}@host/db?sslmode=require",
    f"postgresql://user:{SECRET}/{SECRET}@host/db",  # not as it should be written, but a secret
    f"postgresql://user@host/db?password={SECRET}",
    f"postgresql:///db?host=h&sslpassword={SECRET}",
    f"https://user:{SECRET}@mlflow.example",
    f"https://user:{SECRET}@mlflow.example:5000/path",
    f"https://user:{SECRET}/{SECRET}@mlflow.example",
    f"postgresql://user:5432/{SECRET}@host/db",
    f"mysql://user:{SECRET}@host/db",
]
WITHOUT = [
    "postgresql://user@host:5432/db",
    "postgresql+psycopg://user@[::1]:5432/db",
    "postgresql://host/db?application_name=a:b@c",
    "postgresql:///?service=search",
    "sqlite:////data/a:b@c/mlflow.db",
    "sqlite:///runs/mlflow.db",
    "http://127.0.0.1:5000",
    "http://host:5000/a@b",
    "https://[::1]:5000/a:b@c",
]


@pytest.mark.parametrize("uri", WITH_PASSWORD)
def test_a_password_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(UriError, match="--storage must hold no password") as caught:
        require_no_password(uri, "--storage")
    assert SECRET not in str(caught.value)
    instead = "MLFLOW_TRACKING_PASSWORD" if uri.startswith("http") else "PGPASSWORD"
    assert instead in str(caught.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_is_no_password_passes(uri: str) -> None:
    require_no_password(uri, "--storage")


@pytest.mark.parametrize("uri", WITHOUT)
def test_a_store_that_fails_is_shown_as_it_was_given(uri: str) -> None:
    with pytest.raises(TrackingError) as caught, store_errors(uri):
        raise OSError("gone")
    assert str(caught.value) == f"{uri}: gone"


@pytest.mark.parametrize("name", ["runs", "my runs", "50%", "a:b@c", "#1", "ü"])
def test_the_uri_of_a_file_leads_back_to_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "mlflow.db"
    assert make_url(sqlite_uri(file)).database == str(file)


@pytest.mark.parametrize("name", ["runs?", "%41"])
def test_a_search_refuses_a_folder_that_is_another_in_a_uri(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setattr("search.study.check", lambda uri: pytest.fail(f"{uri} was opened"))
    data, out = write_dcase2020(tmp_path / "data"), tmp_path / name
    assert main(["--space", str(SMOKE), "--data", str(data), "--out", str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --out must hold no '?'")
    assert str(out) in line


@pytest.mark.parametrize("option", ["--storage", "--tracking-uri"])
def test_a_search_refuses_before_it_does_anything(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--space", "nowhere.yaml", option, WITH_PASSWORD[0]]) == 2
    said = capsys.readouterr()
    assert f"error: {option} must hold no password" in said.err
    assert SECRET not in said.err + said.out
