"""A web server on this machine that serves one file and misbehaves as told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server sends, and what it was asked.

    Attributes:
        content: the file.
        tag: its ETag; None for none.
        ranges: whether it answers to Range.
        break_after: for each coming request, after how many bytes the connection ends; None: it holds.
        statuses: for each coming request, an error to answer with; 0: none.
        redirect: where to send everybody.
        tells_length: whether it says how long its answers are.
        length: what it says then; None: the truth.
        asked: the Range header of each request ("" for none).
    """

    content: bytes
    tag: str | None = '"one"'
    ranges: bool = True
    break_after: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None
    tells_length: bool = True
    length: str | None = None
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(site: Site) -> Iterator[str]:
    """Serve `site`; yields the address of its root."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range", "")
            site.asked.append(wanted)
            status = site.statuses.pop(0) if site.statuses else 0
            if site.redirect or status:
                self.send_response(302 if site.redirect else status)
                self.send_header("Location", site.redirect or "")
                self.end_headers()
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            fresh = self.headers.get("If-Range") in (None, site.tag)
            if wanted and site.ranges and fresh and start >= len(site.content):
                self.send_error(416)
                return
            part = bool(wanted) and site.ranges and fresh
            body = site.content[start:] if part else site.content
            self.send_response(206 if part else 200)
            if site.tag:
                self.send_header("ETag", site.tag)
            if part:
                total = len(site.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if site.tells_length:
                self.send_header("Content-Length", str(len(body)) if site.length is None else site.length)
            self.end_headers()
            limit = site.break_after.pop(0) if site.break_after else None
            self.wfile.write(body[:limit])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=server.serve_forever, args=(0.01,), daemon=True
    )  # looks so often for its end
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
