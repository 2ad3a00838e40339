"""Writes a figure so that the file is either whole or as it was."""

from pathlib import Path

from matplotlib.figure import Figure


class FigureFileError(ValueError):
    """A figure cannot be written; the message names the file."""


def write_figure(figure: Figure, path: Path) -> None:
    """Write in the format that the name ends with, under a temporary name, then rename.

    Raises:
        FigureFileError: matplotlib knows no such format, or the folder cannot be written.
    """
    known = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise FigureFileError(f"{path}: must end in one of {', '.join(f'.{x}' for x in known)}")
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    except OSError as error:
        raise FigureFileError(f"{path}: cannot be written: {error.strerror}") from error
