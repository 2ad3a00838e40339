"""The journal file of a study: whole lines only, whatever becomes of the disk or the writer."""

import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from search.shared_files import SharedFiles, SharedFilesError
from search.studies import StorageLost


class Journal(JournalFileBackend):
    """Optuna's, for one writer; waits where a disk is full, and takes half of a record back.

    Optuna's own would append the next record to the half that a full disk left, and could never
    read the file again.
    """

    def __init__(self, path: Path) -> None:
        """Mend what a killed writer left, then open."""
        _mend(path)
        super().__init__(str(path.absolute()))
        self._path = path
        self._folder = SharedFiles(path.parent)
        self._lost: StorageLost | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records, all or none.

        Raises:
            StorageLost: They could not be written, as to a disk that is full, and that stayed so.
        """
        if self._lost:  # what was to be written before is missing, so nothing may follow
            raise self._lost

        def append(path: Path) -> None:
            size = path.stat().st_size
            try:
                super(Journal, self).append_logs(logs)
            except OSError:
                os.truncate(path, size)
                raise

        try:
            self._folder.write(str(self._path), append)
        except SharedFilesError as error:
            self._lost = StorageLost(
                f"error: {error}; what is written is safe: mend it and repeat the command, and the "
                "trials that were running go on from their last checkpoint"
            )
            raise self._lost from error


def _mend(path: Path) -> None:
    """Undo what a killed writer leaves: a lock nobody holds, half of a last line."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
