"""Files over HTTP: resumed after a break, checked, and in their place only when they are whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lgd import __version__
from lgd.weights.limits import LARGEST, in_words
from lgd.weights.report import WeightsError
from lgd.words import counted

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_LATER = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be another the next time."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_TOTAL = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


def download(
    url: str,
    file: Path,
    *,
    sha256: str | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
    largest: int = LARGEST,
) -> None:
    """Fetch `url` into `file`, unless it is there already.

    What has arrived is kept in `file` + ".part", so that the next attempt or the next run asks for the rest
    only; a server that does not know ranges, or whose file has changed, sends all of it again. Processes that
    want the same file wait for the one that fetches it. Proxies are taken from the environment.

    Args:
        url: where the file is; redirections may not lead from https to anything else.
        file: where to put it.
        sha256: the file's SHA-256 in hexadecimal digits, or its first digits; None where it is not known.
        attempts: how often to try.
        pause: seconds before the second attempt; doubled before every further one.
        timeout: seconds without a byte after which an attempt has failed.
        largest: bytes that the file may have.

    Raises:
        WeightsError: the server does not have the file, could not be reached in all attempts, or sent another
            file than `sha256` says or one that is too large; or the disk takes no more.
    """
    try:
        if _is_whole(file, sha256):  # before anything is written: the cache may be read-only
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with _lock(file):
            if _is_whole(file, sha256):
                return
            if file.exists():
                logger.warning("%s is damaged: its SHA-256 is not %s; fetching it again", file, sha256)
            _fetch(url, file, sha256, attempts, pause, timeout, largest)
    except OSError as error:
        raise WeightsError(f"{url}: cannot write {error.filename or file}: {error.strerror}") from None


def _is_whole(file: Path, sha256: str | None) -> bool:
    return file.exists() and (sha256 is None or _digest(file).startswith(sha256))


def _fetch(
    url: str, file: Path, sha256: str | None, attempts: int, pause: float, timeout: float, largest: int
) -> None:
    part = _Part(file, largest)
    logger.info("downloading %s to %s", url, file)
    for attempt in range(1, attempts + 1):
        try:
            _receive(url, part, timeout)
            break
        except (_InterruptedError, urllib.error.HTTPError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _LATER:
                raise WeightsError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = str(error)
        if attempt == attempts:
            have = f"; {part.size()} bytes are kept, the next try goes on from there" if part.size() else ""
            raise WeightsError(f"{url}: not fetched in {counted(attempts, 'attempt')} ({reason}){have}")
        delay = pause * 2 ** (attempt - 1)
        logger.warning(
            "%s: %s at %d bytes; attempt %d of %d in %g s",
            url, reason, part.size(), attempt + 1, attempts, delay,
        )  # fmt: skip
        time.sleep(delay)
    found = _digest(part.path)
    if sha256 is not None and not found.startswith(sha256):
        part.discard()
        raise WeightsError(
            f"{url}: another file than expected arrived: its SHA-256 is {found}, not {sha256}"
            f"{'' if len(sha256) == 64 else '...'}; nothing was kept"
        )
    part.finish()


class _InterruptedError(Exception):
    """A connection that failed or ended early; another attempt may succeed."""


class _Part:
    """A file on its way: `file` + ".part", and in ".part.tag" the version of it that the server named.

    Without that tag, a later attempt could join the halves of two different files.
    """

    def __init__(self, file: Path, largest: int) -> None:
        self.file = file
        self.largest = largest
        self.path = file.with_name(file.name + ".part")
        self.tag_path = file.with_name(file.name + ".part.tag")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def tag(self) -> str | None:
        return self.tag_path.read_text() if self.tag_path.exists() else None

    def start(self, tag: str | None) -> None:
        self.discard()
        if tag:
            self.tag_path.write_text(tag)

    def check(self, url: str, total: int) -> None:
        """Refuse a file of so many bytes or more, and keep nothing of it."""
        if total > self.largest:
            self.discard()
            raise WeightsError(
                f"{url}: the file has {in_words(total)} or more, and at most {in_words(self.largest)} are "
                "fetched; if it is what you want, fetch it yourself and set MODEL.WEIGHTS to its path"
            )

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.tag_path.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.file)
        self.tag_path.unlink(missing_ok=True)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from https to anything else."""

    def redirect_request(  # type: ignore[no-untyped-def]
        self, request, response, code, message, headers, new_url
    ):
        if request.full_url.startswith("https://") and not new_url.startswith("https://"):
            raise WeightsError(f"{request.full_url}: redirected to {new_url}, which is not https")
        return super().redirect_request(request, response, code, message, headers, new_url)


def _receive(url: str, part: _Part, timeout: float) -> None:
    """One attempt: append to the part what it lacks, or begin anew; return when it is whole."""
    request = urllib.request.Request(url, headers={"User-Agent": f"lgd/{__version__}"})
    start, tag = part.size(), part.tag()
    if start and tag:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag)
    with _open(request, part, timeout) as response:
        total = _total_length(response, start)
        part.check(url, total or 0)
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            part.start(_version(response))
        with part.path.open("ab") as stream:
            for chunk in _chunks(response):
                part.check(url, stream.tell() + len(chunk))
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and part.size() != total:
        raise _InterruptedError(f"the connection ended after {part.size()} of {total} bytes")


def _open(request: urllib.request.Request, part: _Part, timeout: float) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(_NoDowngrade).open(
            request, timeout=timeout
        )
        return response
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.discard()
        raise _InterruptedError("the server has no such range") from None
    except (http.client.HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _InterruptedError(str(reason) or type(error).__name__) from None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body; here only the network can fail, so that the disk's errors are not taken for its."""
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (http.client.HTTPException, OSError) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from None


def _total_length(response: http.client.HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file, where the server tells."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = _TOTAL.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _InterruptedError(f"the server answers with another range than from {start} on")
        return int(match[2])
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _version(response: http.client.HTTPResponse) -> str | None:
    """What the server calls this version of the file; weak tags may stand for different bytes."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold the lock of `file` among all processes that see its folder; it ends with its process."""
    with file.with_name(file.name + ".lock").open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that downloads %s", file)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s lies on a file system without locks; start one job at a time", file.parent)
        yield
