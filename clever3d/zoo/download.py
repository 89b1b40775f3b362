"""One file over https, resumed where it can be, from a server that is not trusted. Files of the Hub: hub.py.

The Hub client's own function is not public, and PyTorch's neither waits for a limited time nor sees a cut connection;
so this is the standard library's.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from clever3d._version import __version__
from clever3d.errors import CheckpointError, DataError

MAX_BYTES = 8 << 30  # our choice
_BLOCK = 1 << 16
_ATTEMPTS = 5  # in a row that bring no new megabyte
_PAUSE_S = 1.0  # after the first of them, doubled after each
_AGAIN = (408, 429, 500, 502, 503, 504)  # answers that another attempt may change

_log = logging.getLogger("clever3d")


def download(url: str, target: Path) -> None:
    """Fetches a file, with a bar on a terminal; a cut connection is resumed where the server can do that.

    The time to wait for an answer is the Hub client's ``HF_HUB_DOWNLOAD_TIMEOUT``.

    Args:
        url: https; http to this very machine is allowed too. The same holds for where it redirects to.
        target: file to write. After an error it is there, unfinished.

    Raises:
        CheckpointError: the server refuses, is not there, or sends not all of it in several attempts.
        DataError: there is no room for it.
    """
    from huggingface_hub import constants

    off = True if constants.HF_HUB_DISABLE_PROGRESS_BARS else None  # None: off where there is no terminal
    try:
        with target.open("wb") as file, tqdm(unit="B", unit_scale=True, disable=off, desc=name_in(url)) as bar:
            _Download(url, file, bar, constants.HF_HUB_DOWNLOAD_TIMEOUT).run()
    except OSError as error:  # of the file: those of the network are no OSError any more
        raise not_stored(url, error) from error


class _Download:
    def __init__(self, url: str, file: IO[bytes], bar: Any, timeout: float) -> None:
        check_url(url)
        self.url, self.file, self.bar, self.timeout = url, file, bar, timeout
        self.opener = urllib.request.build_opener(_SafeRedirects)
        self.version: str | None = None  # the server's mark of the content, so that no two are ever mixed

    def run(self) -> None:
        failures, reached = 0, 0
        while True:
            try:
                self._attempt()
                return
            except (OSError, http.client.HTTPException) as error:  # of the network, see _keep
                if self.file.tell() > reached + (1 << 20):
                    failures, reached = 0, self.file.tell()
                failures += 1
                reason = f"{self.url}: {error or type(error).__name__}"
                if failures == _ATTEMPTS or _is_final(error):
                    raise CheckpointError(reason + (f" ({failures} attempts)" if failures > 1 else "")) from error
            _log.info("%s; trying again", reason)
            time.sleep(_PAUSE_S * 2 ** (failures - 1))

    def _attempt(self) -> None:
        headers = {"User-Agent": f"clever3d/{__version__}", "Accept-Encoding": "identity"}
        if self.version is None:
            self._start_again()
        elif self.file.tell():
            headers |= {"Range": f"bytes={self.file.tell()}-", "If-Range": self.version}
        request = urllib.request.Request(self.url, headers=headers)
        with self.opener.open(request, timeout=self.timeout) as response:
            total = self._total(response)
            self.bar.total = total
            while block := response.read(_BLOCK):
                self._keep(block, total)
        if total not in (None, self.file.tell()):
            raise ConnectionError(f"the connection was cut after {self.file.tell():,} of {total:,} bytes")

    def _total(self, response: Any) -> int | None:
        """Length of the whole file, where the server says it. Puts the file back where this answer continues it."""
        if response.status == 206:
            part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if part is None or int(part[1]) != self.file.tell():
                self.version = None
                raise ConnectionError("the server sends another part than the one asked for")
            return int(part[2])
        self._start_again()
        tag = response.headers.get("ETag", "")
        self.version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None

    def _start_again(self) -> None:
        if self.file.tell():
            self.bar.update(-self.file.tell())
            self.file.seek(0)
            self.file.truncate()

    def _keep(self, block: bytes, total: int | None) -> None:
        try:
            self.file.write(block)
        except OSError as error:
            raise not_stored(self.url, error) from error
        self.bar.update(len(block))
        if max(total or 0, self.file.tell()) > MAX_BYTES:
            raise CheckpointError(f"{self.url} has more than {MAX_BYTES:,} bytes")


def _is_final(error: Exception) -> bool:
    """Whether another attempt would end in the same way."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return error.code not in _AGAIN
    return isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, *given: Any) -> urllib.request.Request | None:
        check_url(given[-1], here_too=req.full_url.startswith("http:"))
        return super().redirect_request(req, *given)


def check_url(url: str, *, here_too: bool = True) -> None:
    parts = urllib.parse.urlsplit(url)
    here = here_too and parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not here and not (parts.scheme == "https" and parts.hostname):
        raise CheckpointError(f"{url} is not fetched: weights come over https only")


def name_in(url: str) -> str:
    """The last part of an address's path."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]


def not_stored(what: str, error: Exception) -> DataError:
    """The error for a place that cannot be written."""
    return DataError(f"{what} cannot be stored: {error}. Set HF_HOME to a folder that has room and can be written.")
