"""Files from the Hugging Face Hub, through its own client: its cache, its variables, its retries; our error messages.

``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` hold as everywhere. The client compares sizes only, so
what it brought is held to the sha256 that the manifest or the repository's ``config.json`` names.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clever3d._version import __version__
from clever3d.errors import CheckpointError, InputError
from clever3d.zoo.checkpoint import file_sha256
from clever3d.zoo.records import is_plain_path, is_repository

PREFIX = "hf-hub:"
#: How often a download is begun again when the connection breaks; the client itself goes on where it can.
ATTEMPTS = 3

_log = logging.getLogger("clever3d")


@dataclass(frozen=True)
class Source:
    """Where downloads may come from and go to.

    Attributes:
        cache_dir: folder of the cache; None for the one of the Hugging Face client.
        local_files_only: never ask the network.
    """

    cache_dir: Path | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at a revision (a commit, a branch or a tag; None for the default branch)."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def parse_repository(text: str, revision: str | None = None) -> Repository:
    """``[hf-hub:]organisation/name[@revision]``, and the ``revision`` given beside it.

    Raises:
        InputError: it is not of that form, or two revisions are given.
    """
    name, at, inline = text.removeprefix(PREFIX).partition("@")
    if not is_repository(name):
        raise InputError(f"{text!r} is no repository of the Hub: give {PREFIX}organisation/name or ...name@revision")
    if at and revision is not None and revision != inline:
        raise InputError(f"{text!r} names one revision and revision={revision!r} another: leave one of them out")
    wanted = inline if at else revision
    if wanted is not None and (not re.fullmatch(r"\w[\w./-]*", wanted, re.ASCII) or not is_plain_path(wanted)):
        raise InputError(f"revision {wanted!r} is none: give a commit, a branch or a tag")
    return Repository(name, wanted)


def fetch(repository: Repository, file: str, source: Source, *, force: bool = False) -> Path:
    """A file of a repository, from the cache or the network.

    Args:
        repository: repository and revision.
        file: path inside the repository.
        source: the cache, and whether the network may be asked.
        force: download it even where the cache has it.

    Raises:
        CheckpointError: it cannot be had; the message says why and what to do.
    """
    from huggingface_hub import hf_hub_download

    if not is_plain_path(file):
        raise CheckpointError(f"{repository} names the file {file!r}, which is no plain path inside it. Do not use it.")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return Path(
                hf_hub_download(
                    repository.name,
                    file,
                    revision=repository.revision,
                    cache_dir=source.cache_dir,
                    local_files_only=source.local_files_only,
                    force_download=force,
                    library_name="clever3d",
                    library_version=__version__,
                )
            )
        except Exception as error:  # the transport's own errors have no base class in common, and change with versions
            if attempt == ATTEMPTS or not broke_off(error):
                raise CheckpointError(explain(error, repository, file, source)) from error
            _log.warning("the download of %s from %s broke off (%s): once more", file, repository, _reason(error))
    raise AssertionError  # the last attempt returns or raises


def broke_off(error: BaseException, *, again_after_5xx: bool = False) -> bool:
    """Whether an error is one of the connection, so that another attempt may go well: no answer, and nothing local.

    After a commit, a 5xx is no answer either: a gateway may give up on what the Hub then does.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    status = _status(error)
    if status is not None and status >= 500 and again_after_5xx:
        return True
    answered = status is not None or isinstance(error, (HfHubHTTPError, EntryNotFoundError, ValueError))
    local = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
    return not answered and not local


def commit_of(path: Path) -> str | None:
    """The commit of a file that `fetch` returned: the cache keeps each snapshot in a folder of that name."""
    found = re.findall(r"(?<=/snapshots/)[0-9a-f]{40}(?=/)", path.as_posix())
    return str(found[-1]) if found else None


def blob_is_whole(path: Path) -> bool:
    """Whether a small file of the cache is what the Hub sent: the cache names it by git's hash of its content.

    Mirrors may name it by its plain sha1. Any other name says nothing (systems without links have none), and the file
    is taken to be whole.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{40}", blob.name) is None:
        return True
    content = blob.read_bytes()
    forms = (b"blob %d\0" % len(content) + content, content)
    return any(hashlib.sha1(form, usedforsecurity=False).hexdigest() == blob.name for form in forms)


def fetch_verified(repository: Repository, file: str, sha256: str, size: int, source: Source) -> Path:
    """`fetch`, and the file's size and sha256 checked; a damaged copy in the cache is replaced once.

    Raises:
        CheckpointError: it cannot be had, or the Hub itself has another file than was recorded.
    """
    path = fetch(repository, file, source)
    wrong = difference(path, sha256, size)
    if wrong is None:
        return path
    path = _replaced(path, wrong, repository, file, source)
    wrong = difference(path, sha256, size)
    if wrong is not None:
        _forget(path)
        raise CheckpointError(
            f"{file} of {repository} on the Hub {wrong}, also after a second download. It is not what was recorded "
            "when it was published, so it is not used and not kept: ask who published it."
        )
    return path


def fetch_whole(repository: Repository, file: str, source: Source) -> Path:
    """`fetch` of a small file that has no recorded sha256; a damaged copy in the cache is replaced once.

    Raises:
        CheckpointError: it cannot be had, or is damaged and there is no network.
    """
    path = fetch(repository, file, source)
    return path if blob_is_whole(path) else _replaced(path, "was changed", repository, file, source)


def _replaced(path: Path, wrong: str, repository: Repository, file: str, source: Source) -> Path:
    if source.local_files_only or _offline():
        raise CheckpointError(
            f"{path} is damaged: it {wrong}. Without a network it cannot be replaced: delete it and load again online, "
            "or copy a good one to that place."
        )
    _log.warning("%s in the cache %s: it is downloaded again", path, wrong)
    return fetch(repository, file, source, force=True)


def difference(path: Path, sha256: str, size: int) -> str | None:
    """What a file is instead of what it should be; None when it is that."""
    found = path.stat().st_size
    if found != size:
        return f"has {found:,} bytes instead of {size:,}"
    digest = file_sha256(path)
    return None if digest == sha256 else f"has the sha256 {digest} instead of {sha256}"


def explain(error: BaseException, repository: Repository, file: str, source: Source) -> str:
    """What went wrong in words of ours, and what to do about it."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{file} of {repository} could not be had from the Hub"
    if isinstance(error, GatedRepoError):
        return f"{what}: access has to be asked for on the repository's page; then set HF_TOKEN (or hf auth login)."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{what}: there is no such repository, or it is private and the token is missing or not allowed to read "
            "it. Check the name; for a private one set HF_TOKEN (or hf auth login)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{what}: the repository has no revision {repository.revision!r}. Give a commit, branch or tag it has."
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{what}: there is no such file. A repository made by clever3d publish has it; check the name."
    if source.local_files_only or _offline():
        why = "local_files_only was given" if source.local_files_only else "HF_HUB_OFFLINE is set"
        return f"{what}: it is not in the cache, and {why}. Load it once online, or load a file or folder of your own."
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, LocalEntryNotFoundError):
        return (
            f"{what}: {error.strerror} ({error.filename or 'in the cache'}). HF_HOME or cache_dir names another place."
        )
    status = _status(error)
    if status in (401, 403):
        return f"{what}: access was denied ({status}). Check HF_TOKEN (or hf auth login) and what it may read."
    if status is not None:
        return f"{what}: the server answered {status}. Try again later; HF_ENDPOINT names another server."
    return f"{what}: {_reason(error)}. Check the network (HF_ENDPOINT, proxies), or load a file or folder of your own."


def denied(error: BaseException, repository: Repository) -> str:
    """Why nothing could be published, and what to do about it."""
    what, status = f"Nothing was published in {repository}", _status(error)
    if status == 401:
        return f"{what}: the Hub knows no such user (401). Set HF_TOKEN to a token that may write, or hf auth login."
    if _offline():
        return f"{what}: HF_HUB_OFFLINE is set."
    if status in (403, 404):
        return (
            f"{what}: the token may not write there ({status}). Use one with write access, and a name of your own: "
            "user/name or organisation/name."
        )
    if status is not None and status < 500:
        return f"{what}: the server answered {status} ({_reason(error)})."
    return (
        f"Publishing in {repository} broke off: {_reason(error)}. Check the network (HF_ENDPOINT, proxies) and do it "
        "again: what has arrived is not sent twice. A Hub of one's own without Xet needs HF_HUB_DISABLE_XET=1."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status of the answer behind an error, if there was one."""
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _reason(error: BaseException) -> str:
    """The innermost error in one line."""
    *_, last = _chain(error)
    return f"{type(last).__name__}: {last}".splitlines()[0].rstrip(": .")


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _forget(path: Path) -> None:
    """Removes a file of the cache, and what its link points at."""
    with contextlib.suppress(OSError):
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
