"""An S3 server on loopback, moto's, that counts what is asked of it and misbehaves when told to."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "mimimi"
ACCESS = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret-that-nobody-may-write-down",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

Fault = Callable[["Request"], "Reply | None"]


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    method: str
    path: str  # /BUCKET/KEY
    range: str  # such as bytes=0-99
    status: int = 0  # that was answered
    n_bytes: int = 0  # that were answered


@dataclass(frozen=True)
class Reply:
    """An answer in the place of the right one; with `lacks`, that one but cut or changed."""

    status: str = "503 Slow Down"
    body: bytes = SLOW_DOWN
    lacks: int = 0  # bytes that never come, though announced
    changes: bool = False  # the bytes


@dataclass
class S3Server:
    """Runs in threads of this process while in `running`."""

    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None
    port: int = 0

    def uri(self, prefix: str) -> str:
        """Of a prefix of the bucket, for pyarrow."""
        return (
            f"s3://{BUCKET}/{prefix}?region=us-east-1&scheme=http"
            f"&endpoint_override=127.0.0.1:{self.port}"
        )

    def client(self) -> Any:
        return boto3.client(
            "s3",
            "us-east-1",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )

    def keys(self, prefix: str = "") -> list[str]:
        """Of all objects, without the empty ones that pyarrow makes for folders."""
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [one["Key"] for one in found if not one["Key"].endswith("/")]

    def reads(self, part_of_path: str) -> list[Request]:
        """Successful downloads."""
        return [
            r
            for r in list(self.requests)
            if r.method == "GET" and part_of_path in r.path and r.status in (200, 206)
        ]

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        self._right = DomainDispatcherApplication(create_backend_app)
        server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            self.client().create_bucket(Bucket=BUCKET)
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def __call__(self, environ: Mapping[str, Any], start_response: Any) -> Iterable[bytes]:
        """A WSGI application around moto's."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        request = Request(method, path, environ.get("HTTP_RANGE", ""))
        reply = self.fault(request) if self.fault else None
        if reply and not reply.lacks and not reply.changes:
            environ["wsgi.input"].read()
            self._log(request, reply.status, b"")
            start_response(reply.status, [("Content-Type", "application/xml")])
            return [reply.body]
        said: list[Any] = []
        body = b"".join(self._right(environ, lambda *args: said.extend(args[:2])))
        status, headers = said
        if reply:
            body = body[: -reply.lacks] if reply.lacks else bytes(255 - byte for byte in body)
        self._log(request, status, body)
        start_response(status, headers)
        return [body]

    def _log(self, request: Request, status: str, body: bytes) -> None:
        number = int(status.partition(" ")[0])
        self.requests.append(
            Request(request.method, request.path, request.range, number, len(body))
        )


class _Quiet(WSGIRequestHandler):
    """Writes no line per request."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass
