"""Addresses of MLflow's web pages."""

import subprocess

import pytest

from search.mlflow_ui import links


@pytest.mark.parametrize(
    "uri", ["sqlite:////data/my runs/mlflow.db", "postgresql://u@h/db?sslmode=require&user=x"]
)
def test_a_shell_passes_the_uri_of_a_database_on(uri: str) -> None:
    command = links(uri, "1", {}, [])[0]
    assert command.startswith("mlflow ui --backend-store-uri ")
    script = f'set -- {command}; printf %s "$4"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout == uri
