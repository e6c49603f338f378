"""Serve files over HTTP on this machine as good and bad servers do: without ranges, dropping, lying, changing."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class ServedFile:
    """One file and how it is served."""

    content: bytes
    drops: list[int] = field(default_factory=list)  # after how many bytes of the body each next answer ends
    statuses: list[int] = field(default_factory=list)  # of the next answers
    ranges: bool = True  # False: the whole file is sent, whatever is asked
    shift: int = 0  # bytes by which an answer to a range begins too late
    honors_if_range: bool = True
    etag: bool = True
    last_modified: str = "Mon, 01 Jan 2024 00:00:00 GMT"  # empty: not told
    length: int | None = -1  # told as Content-Length; -1: the true one; None: not told
    chunked: bool = False
    chunked_from_start: bool = False  # an answer with the whole file is chunked, one with a range is not
    next_content: bytes | None = None  # takes the place of `content` after the next answer with a body
    delay: float = 0.0  # seconds per 4 KiB

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"' if self.etag else ""


@dataclass
class FileServer:
    """The files of a running server, and the requests it has answered."""

    address: str
    files: dict[str, ServedFile] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def add(self, path: str, content: bytes, **behavior: object) -> str:
        """Serve a file and return its address."""
        self.files[path] = ServedFile(content, **behavior)  # type: ignore[arg-type]
        return f"{self.address}/{path}"

    def gets(self, path: str = "") -> list[str]:
        """Return the Range of each GET request, of one path or of all."""
        return [ranges for method, name, ranges in self.requests if method == "GET" and path in ("", name)]


@contextmanager
def serve_files() -> Iterator[FileServer]:
    """Run a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path.lstrip("/"))
            server.requests.append((self.command, path, self.headers.get("Range", "")))
            file = server.files.get(path)
            self.close_connection = True
            if file is None or (body and file.statuses):
                self.send_error(file.statuses.pop(0) if file else 404)
                return
            content, status, start = file.content, 200, 0
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range", "")
            same = not file.honors_if_range or condition in ("", file.tag, file.last_modified)
            if wanted and file.ranges and same:
                status, start = 206, int(wanted[1]) + file.shift
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(status)
            if file.tag:
                self.send_header("ETag", file.tag)
            if file.last_modified:
                self.send_header("Last-Modified", file.last_modified)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.is_chunked = file.chunked or file.chunked_from_start and status == 200
            if self.is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif file.length is not None:
                length = len(content) if file.length < 0 else file.length
                self.send_header("Content-Length", str(length - start))
            self.send_header("Connection", "close")
            self.end_headers()
            if body:
                self.send_body(file, content[start:])

        def send_body(self, file: ServedFile, data: bytes) -> None:
            dropped = bool(file.drops)
            if dropped:
                data = data[: file.drops.pop(0)]
            if file.next_content is not None:
                file.content, file.next_content = file.next_content, None
            for offset in range(0, len(data), 4096):
                piece = data[offset : offset + 4096]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.is_chunked else piece)
                if file.delay:
                    time.sleep(file.delay)
            if self.is_chunked and not dropped:
                self.wfile.write(b"0\r\n\r\n")

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore that a client has gone."""

    http_server = QuietServer(("127.0.0.1", 0), Handler)
    server = FileServer(f"http://127.0.0.1:{http_server.server_address[1]}")
    thread = threading.Thread(target=lambda: http_server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()
