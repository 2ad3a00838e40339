"""What the URI of a database or a server may hold: no password, since URIs end up in logs."""

import re
from pathlib import Path

_HOST_AND_PORT = re.compile(r"[^/@]+:\d+/")
_CHANGED_IN_URI = re.compile(r"\?|%[0-9a-fA-F]{2}")  # an option, and a character by its code
_SECRET_OPTIONS = re.compile(r"[?&](ssl)?password=", re.IGNORECASE)


class UriError(ValueError):
    """A URI cannot be used; the message repeats no secret of it."""


def require_no_password(uri: str, option: str) -> None:
    """Refuse a URI with a password: command lines, shell histories and logs would all show it.

    Args:
        uri: Of a database or a server.
        option: Where it was given, such as `--storage`.

    Raises:
        UriError: It holds one.
    """
    scheme, _, rest = uri.partition("://")
    credentials = rest.partition("?")[0].rpartition("@")[0]  # nobody's in sqlite:////a:b@c
    is_path = scheme.startswith("http") and _HOST_AND_PORT.match(rest)  # http://host:5000/a@b
    has_credentials = ":" in credentials and not rest.startswith("/") and not is_path
    if not has_credentials and not _SECRET_OPTIONS.search(rest):
        return
    if scheme.startswith("http"):
        instead = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        instead = "set PGPASSWORD, or put it into ~/.pgpass (PGPASSFILE) or a service file"
    raise UriError(
        f"{option} must hold no password, because logs and the list of processes show it: leave "
        f"it out (USER@HOST) and {instead}; change it if others use this machine"
    )


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite file below `--out`.

    Raises:
        UriError: Its path is another one in a URI.
    """
    if _CHANGED_IN_URI.search(str(file)):
        raise UriError(
            "--out must hold no '?', and no '%' before two hexadecimal digits, which MLflow reads "
            f"otherwise in {file}: name another folder, or give --tracking-uri"
        )
    return f"sqlite:///{file}"
