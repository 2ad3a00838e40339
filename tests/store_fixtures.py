"""An object store in memory that refuses when told to, and a clock that waits for nobody."""

from typing import Any

from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs


class Faulty(fs.FSSpecHandler):
    """A store in memory, whose next operations of a kind fail."""

    def __init__(self) -> None:
        self.memory = MemoryFileSystem()
        self.memory.store, self.memory.pseudo_dirs = {}, [""]
        super().__init__(self.memory)
        self.refusals: dict[str, int] = {}
        self.n_reads = 0

    def _may(self, kind: str) -> None:
        if self.refusals.get(kind, 0) > 0:
            self.refusals[kind] -= 1
            raise OSError("AWS Error SLOW_DOWN\nduring a test")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._may("write")
        return super().open_output_stream(path, metadata)

    def open_input_stream(self, path: str) -> Any:
        self._may("read")
        return super().open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self.n_reads += 1
        self._may("read")
        return super().open_input_file(path)

    def get_file_info(self, paths: list[str]) -> Any:
        self._may("look")
        return super().get_file_info(paths)

    def delete_file(self, path: str) -> None:
        self._may("delete")
        super().delete_file(path)

    def delete_dir(self, path: str) -> None:
        self._may("delete")
        super().delete_dir(path)


class Clock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
