"""One gRPC call with an empty request, in nothing but the standard library, for a stranger to make.

    python raw_grpc.py HOST PORT /package.Service/Method [TOKEN]

Prints the call's status: 0 it was carried out, 12 no such method here, 16 not authenticated
(https://grpc.io/docs/guides/status-codes/), or "none" if the port speaks no gRPC.
"""

import re
import socket
import sys

_SETTINGS, _HEADERS, _DATA = 4, 1, 0
_END_STREAM, _END_HEADERS = 1, 4


def main(host: str, port: str, method: str, token: str = "") -> str:
    """Ask, and find the status in the raw reply (RFC 9113; gRPC does not compress this header)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": host,
        "content-type": "application/grpc",
        "te": "trailers",
        **({"authorization": f"Bearer {token}"} if token else {}),
    }
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
    request += _frame(_HEADERS, _END_HEADERS, 1, block)
    request += _frame(_DATA, _END_STREAM, 1, bytes(5))
    reply = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.settimeout(3)
        connection.sendall(request)
        try:
            while b"grpc-status" not in reply and (more := connection.recv(65536)):
                reply += more
        except TimeoutError:
            pass
    status = re.search(rb"grpc-status.(\d+)", reply, re.DOTALL)
    return status[1].decode() if status else "none"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def _text(text: str) -> bytes:
    """A header's name or value, shorter than 127 bytes, uncompressed."""
    return bytes([len(text)]) + text.encode()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
