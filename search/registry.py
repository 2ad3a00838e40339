"""Owns the registered models: versions with their provenance, the alias `champion`, downloads.

Speaks MLflow as `search/tracking.py` does, which must be imported first: it sets MLflow up.
"""

import fcntl
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version as installed_version
from pathlib import Path
from time import time
from typing import Any

from search.tracking import TrackingError, open_client, store_errors  # isort: split

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url

_DETECTOR = "detector"  # folder of the weights inside a registered model's `data`
_NOT_IN_LOGGED_MODELS = r"[/:.%\"']"  # MLflow refuses it there, most of it not in registered models
_REQUIREMENTS = ("torch", "torchaudio", "numpy", "scipy", "safetensors", "pyarrow", "soundfile")


def model_name(machine_type: str) -> str:
    """Name of the machine type's registered model."""
    return f"mimimi-{machine_type}"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered version of a machine type's model."""

    number: int
    created: datetime  # UTC
    tags: Mapping[str, str]


class Registry:
    """The registered models `mimimi-<machine_type>`; the one in use has the alias `champion`.

    Every method raises `TrackingError` where the store fails.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        with store_errors(tracking_uri):
            self._client = open_client(tracking_uri)

    def register(
        self,
        machine_type: str,
        model_folder: Path,
        run_id: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float | None],
    ) -> int:
        """Register a saved detector as a new version; the same weights of the same run only once.

        The model is a pyfunc that carries its own code, so it can be loaded where this project is
        not installed. Nothing in it is pickled.

        Args:
            machine_type: Gives the name of the registered model.
            model_folder: As written by `Detector.save`.
            run_id: The run that trained it.
            tags: Where it came from; tags of the version.
            metrics: Written to the run and the model; None is left out.

        Returns:
            The number of the version.
        """
        with store_errors(self._uri):
            name, digest = model_name(machine_type), _digest(model_folder)
            for version in self._client.search_model_versions(f'name = "{name}"'):
                if (version.run_id, version.tags.get("weights")) == (run_id, digest):
                    return int(version.version)
            values = {k: float(v) for k, v in metrics.items() if v is not None}
            model_id, location = self._log_model(name, model_folder, run_id, values)
            try:
                self._client.create_registered_model(name, tags={"machine_type": machine_type})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._client.create_model_version(
                name,
                source=location,  # "models:/<id>" would be looked up in MLflow's global store
                run_id=run_id,
                tags={**tags, "weights": digest},
                model_id=model_id,
            )
            return int(version.version)

    def champion(self, machine_type: str) -> tuple[int, dict[str, str]] | None:
        """Version and tags of the machine type's champion, None when there is none."""
        with store_errors(self._uri):
            try:
                found = self._client.get_model_version_by_alias(
                    model_name(machine_type), "champion"
                )
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
            return int(found.version), dict(found.tags)

    def set_champion(self, machine_type: str, version: int) -> None:
        """Point the alias `champion` at a version, whichever it points at now."""
        with store_errors(self._uri):
            self._client.set_registered_model_alias(
                model_name(machine_type), "champion", str(version)
            )

    def replace_champion(self, machine_type: str, expected: int | None, version: int) -> bool:
        """Move the alias `champion` if it still points at `expected` (None: at no version).

        MLflow has no compare-and-swap. Searches that share a sqlite store take turns here; those
        that share a server could still both look before either writes, within milliseconds.

        Returns:
            False if another version is champion by now; nothing is changed then.
        """
        with self._turn():
            found = self.champion(machine_type)
            if (found[0] if found else None) != expected:
                return False
            self.set_champion(machine_type, version)
            return True

    def set_tags(self, machine_type: str, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version; those of the same name are replaced."""
        with store_errors(self._uri):
            for key, value in tags.items():
                self._client.set_model_version_tag(
                    model_name(machine_type), str(version), key, value
                )

    def machine_types(self) -> list[str]:
        """Machine types that have a registered model."""
        prefix, found = model_name(""), []
        token: str | None = None
        with store_errors(self._uri):
            while token != "":
                page = self._client.search_registered_models(
                    f"name LIKE '{prefix}%'", page_token=token
                )
                found += [model.name.removeprefix(prefix) for model in page]
                token = page.token or ""
        return sorted(found)

    def versions(self, machine_type: str) -> list[Version]:
        """All versions, the oldest first; none if nothing was ever registered."""
        with store_errors(self._uri):
            found = self._client.search_model_versions(f'name = "{model_name(machine_type)}"')
        versions = [
            Version(
                number=int(v.version),
                created=datetime.fromtimestamp(v.creation_timestamp / 1000, UTC),
                tags=dict(v.tags),
            )
            for v in found
        ]
        return sorted(versions, key=lambda version: version.number)

    def download_champion(self, machine_type: str, dest: Path) -> Path:
        """Fetch the champion's weights and settings, not its code.

        Returns:
            A folder for `Detector.load`, inside `dest`.

        Raises:
            TrackingError: There is no champion, or the store cannot be read.
        """
        found = self.champion(machine_type)
        if found is None:
            raise TrackingError(
                f"no champion of machine type {machine_type!r} at {self._uri}; run "
                f"python -m search.run --machine-types {machine_type} --tracking-uri ... first"
            )
        return self.download(machine_type, found[0], dest)

    def download(self, machine_type: str, version: int, dest: Path) -> Path:
        """As `download_champion`, any version."""
        with store_errors(self._uri):
            source = self._client.get_model_version_download_uri(
                model_name(machine_type), str(version)
            )
            dest.mkdir(parents=True, exist_ok=True)
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/data/{_DETECTOR}",
                dst_path=str(dest),
                tracking_uri=self._uri,
            )
        return Path(path)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One at a time on a sqlite store, whose folder serves as the lock."""
        if not self._uri.startswith("sqlite"):
            yield
            return
        folder = os.open(Path(make_url(self._uri).database or "").absolute().parent, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
            except OSError as error:
                raise TrackingError(
                    f"the file of --tracking-uri must lie on a file system with locks, got "
                    f"{self._uri}: {error.strerror}; move it, or use a server"
                ) from error
            yield
        finally:
            os.close(folder)

    def _log_model(
        self, name: str, model_folder: Path, run_id: str, metrics: Mapping[str, float]
    ) -> tuple[str, str]:
        from mlflow.models import Model  # here: it takes a second, and only who registers pays

        run = self._client.get_run(run_id)
        model = self._client.create_logged_model(
            run.info.experiment_id,
            re.sub(_NOT_IN_LOGGED_MODELS, "-", name),
            run_id,
            params=run.data.params,
        )
        with tempfile.TemporaryDirectory() as scratch:
            data = shutil.copytree(model_folder, Path(scratch) / _DETECTOR)
            path = Path(scratch) / "model"
            with warnings.catch_warnings():
                # Of a missing input example (it would be seconds of audio as JSON), and of MLflow's
                # own type hints when `mlflow.pyfunc` is first used.
                warnings.simplefilter("ignore", UserWarning)
                mlflow.pyfunc.save_model(
                    str(path),
                    loader_module="mimimi_core.detector",
                    data_path=str(data),
                    code_paths=[str(Path(__file__).parents[1] / "mimimi_core")],
                    pip_requirements=[
                        f"{package}=={installed_version(package).partition('+')[0]}"
                        for package in _REQUIREMENTS
                    ],
                    signature=_signature(),
                    mlflow_model=Model(
                        artifact_path=model.artifact_location,
                        run_id=run_id,
                        model_uuid=model.model_id,
                        model_id=model.model_id,
                    ),
                )
            self._client.log_model_artifacts(model.model_id, str(path))
        now = int(time() * 1000)
        self._client.log_batch(
            run_id,
            [Metric(k, v, now, 0, model_id=model.model_id) for k, v in metrics.items()],
        )
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id), str(model.artifact_location)


def _signature() -> Any:
    """What a registered model takes and returns, in MLflow's terms."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema(
            [ColSpec(DataType.string, "machine_id"), ColSpec(Array(DataType.double), "waveform")]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.double, "threshold", required=False),
                ColSpec(DataType.string, "decision", required=False),
            ]
        ),
    )


def _digest(model_folder: Path) -> str:
    digest = sha256()
    for file in sorted(model_folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
