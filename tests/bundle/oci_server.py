# SPDX-License-Identifier: Apache-2.0
"""A small registry after the OCI distribution specification, with faults that can be switched on.

It stands in for what a well-behaved registry never does: cut connections, lie, ask for tokens of a strange service.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class OciServer:
    """What a registry holds and does.

    cut_reads, cut_writes: after so many bytes of a body the connection breaks, once for each number. ranges: whether it
    knows them. lie: what it gives instead of any blob. user: `name:password` to ask for, by a token service or
    `basic`. token_realm: where it sends clients for a token.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.cut_reads: list[int] = []
        self.cut_writes: list[int] = []
        self.ranges = True
        self.lie: bytes | None = None
        self.user: str | None = None
        self.basic = False
        self.token_realm: str | None = None
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.bytes_sent = 0
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def requests(self, method: str, part: str = "") -> list[tuple[str, str, dict[str, str]]]:
        return [item for item in self.seen if item[0] == method and part in item[1]]


@contextlib.contextmanager
def oci_server() -> Iterator[OciServer]:
    """A server in a thread of this process."""
    state = OciServer()

    class Handler(_Handler):
        held = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: OciServer

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def _answer(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if code != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_let_in(self) -> bool:
        state, given = self.held, self.headers.get("Authorization", "")
        state.seen.append((self.command, self.path, dict(self.headers)))
        if self.path.startswith("/token"):
            right = "Basic " + base64.b64encode((state.user or "").encode()).decode()
            if given == right:
                self._answer(200, json.dumps({"token": "the-token"}).encode())
            else:
                self._answer(401)
            return False
        if state.user is None or given == "Bearer the-token" or (state.basic and given.startswith("Basic ")):
            return True
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        realm = state.token_realm or f"http://{state.address}/token"
        challenge = 'Basic realm="here"' if state.basic else f'Bearer realm="{realm}",service="here",scope="a:b:c"'
        self._answer(401, b'{"errors": [{"message": "who are you?"}]}', WWW_Authenticate=challenge)
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self._is_let_in():
            return
        state = self.held
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path):
            content = state.manifests.get(found[2])
            self._answer(404) if content is None else self._answer(200, content)
        elif found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", self.path):
            content = state.blobs.get(found[2])
            if content is None:
                self._answer(404)
            elif self.command == "HEAD":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
            else:
                self._send_blob(state.lie if state.lie is not None else content)
        elif found := re.fullmatch(r"/uploads/(\d+)", self.path):
            end = max(0, len(state.uploads[found[1]]) - 1)
            self._answer(204, Location=self.path, Range=f"0-{end}")
        else:
            self._answer(404)

    def _send_blob(self, content: bytes) -> None:
        state, begin = self.held, 0
        if state.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            begin = int(asked[1])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        rest = content[begin:]
        if state.cut_reads:
            rest = rest[: state.cut_reads.pop(0)]
            self.close_connection = True
        state.bytes_sent += len(rest)
        self.wfile.write(rest)
        self.wfile.flush()
        if self.close_connection:
            self.connection.close()

    def do_POST(self) -> None:
        if self._is_let_in():
            number = str(len(self.held.uploads))
            self.held.uploads[number] = bytearray()
            self._answer(202, Location=f"/uploads/{number}")

    def do_PATCH(self) -> None:
        if not self._is_let_in():
            return
        state, upload = self.held, self.held.uploads[self.path.rpartition("/")[2]]
        length = int(self.headers["Content-Length"])
        begin = int(self.headers["Content-Range"].partition("-")[0])
        if state.cut_writes:
            upload += self.rfile.read(min(length, state.cut_writes.pop(0)))
            self.connection.close()
            return
        content = self.rfile.read(length)
        if begin != len(upload):
            self._answer(416, Location=self.path, Range=f"0-{max(0, len(upload) - 1)}")
            return
        upload += content
        self._answer(202, Location=self.path, Range=f"0-{len(upload) - 1}")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._is_let_in():
            return
        state, parts = self.held, urlsplit(self.path)
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path):
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            state.manifests[found[2]] = state.manifests[digest] = content
            self._answer(201, Location=self.path)
            return
        whole = bytes(state.uploads.pop(parts.path.rpartition("/")[2])) + content
        digest = parse_qs(parts.query)["digest"][0]
        if digest != "sha256:" + hashlib.sha256(whole).hexdigest():
            self._answer(400, b'{"errors": [{"message": "digest invalid"}]}')
            return
        state.blobs[digest] = whole
        self._answer(201, Location=f"/v2/x/blobs/{digest}")
