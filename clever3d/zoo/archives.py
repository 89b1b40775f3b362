"""A downloaded tar archive, read as what it is: a file from a stranger.

Nothing is extracted under a name that the archive gives. The members are looked at one by one, in one pass and without
seeking; what is neither a plain file nor a folder ends the reading; and the one torch file is copied to a place of the
caller's choice. Every loop and every buffer is bounded, whatever the headers claim.
"""

from __future__ import annotations

import functools
import gzip
import io
import lzma
import re
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from clever3d.errors import CheckpointError, Clever3dError, DataError
from clever3d.zoo.convert import pickles_are_safe, read_state

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
_BLOCK = 1 << 20
_SHOWN = 6  # names in a message
_one_reader = threading.Lock()  # the list of safe globals is one for all threads


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. The figures are our choice (WaffleIron 48-768 with its optimiser's state is 0.7 GB).

    Attributes:
        members: files and folders.
        member_bytes: size of one file.
        expansion: unpacked bytes for each byte of the archive; trained weights hardly shrink.
        slack_bytes: unpacked bytes beside these, for small archives.
        header_bytes: what lies before, between and after the contents of the files.
    """

    members: int = 1000
    member_bytes: int = 4 << 30
    expansion: int = 20
    slack_bytes: int = 64 << 20
    header_bytes: int = 256 << 10


def read_weights(path: Path, folder: Path) -> dict[str, Tensor]:
    """The state dict in the one torch file of a tar archive, or in such a torch file; no code in it is run.

    Args:
        path: the archive or the torch file.
        folder: a place for the unpacked file; the caller deletes it.

    Raises:
        CheckpointError: as `copy_torch_file` and `clever3d.zoo.convert.read_state`.
        DataError: the archive cannot be opened, or the folder cannot be written (no permission, no space left).
    """
    if not pickles_are_safe():
        raise CheckpointError(
            f"{path} is a stranger's pickle, and PyTorch {torch.__version__} may run code in it even with weights_only "
            "(CVE-2025-32434, CVE-2026-24747): install PyTorch 2.10 or newer to read it."
        )
    if path.suffix.lower() in TORCH_SUFFIXES:
        file, name = path, str(path)
    else:
        file = folder / "weights.pth"
        name = f"{path}: {_short(copy_torch_file(path, file))}"
    try:
        if file.is_file():
            _check_records(file)
        with _numbers_passed_over():
            return read_state(file)[0]
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(file), name)) from None


def copy_torch_file(archive: Path, target: Path, limits: Limits | None = None) -> str:
    """Copies the one torch file of a tar archive (gzip, xz or not packed; told by content, not by name).

    Args:
        archive: the file to read.
        target: file to write. After an error it may be there, half written.
        limits: bounds other than the defaults of `Limits`.

    Returns:
        The name that the file has in the archive.

    Raises:
        CheckpointError: no such archive; it is damaged or cut off; it has a link, a device, a name that leads elsewhere
            or stands there twice, more than ``limits`` allow, or not exactly one file that ends in one of
            :data:`TORCH_SUFFIXES`.
        DataError: the archive cannot be opened, or ``target`` cannot be written (no permission, no space left).
    """
    limits = limits or Limits()
    if not archive.is_file():
        raise CheckpointError(f"{archive} {'is a folder' if archive.is_dir() else 'does not exist'}. Give an archive.")
    total = limits.expansion * archive.stat().st_size + limits.slack_bytes
    try:
        with _unpacked(archive) as stream:
            reader = _Bounded(stream, total, limits.header_bytes)
            with tarfile.open(fileobj=reader, mode="r|") as tar:
                name = _copy_from(tar, reader, target, limits)
            reader.finish()  # only now has gzip compared its checksum
    except Clever3dError as error:
        raise type(error)(f"{archive}: {error}") from None
    except (tarfile.TarError, ValueError, RecursionError) as error:  # of headers that no program writes
        raise CheckpointError(
            f"{archive}: {archive.stat().st_size:,} bytes that hold no sound tar archive ({error}). "
            "Copy or download it again."
        ) from None
    except OSError as error:  # not of reading, see _Bounded
        raise DataError(f"{error.filename or target} cannot be opened or written: {error.strerror or error}") from error
    return name


class _Bounded(io.RawIOBase):
    """The unpacked bytes, of which no more come than were allowed: a header cannot make tarfile read on and on."""

    def __init__(self, stream: IO[bytes], total: int, header_bytes: int) -> None:
        self._stream = stream
        self._total = total
        self._left = total
        self._header_bytes = header_bytes
        self._allowed = header_bytes

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._stream.read(_BLOCK if size < 0 else min(size, _BLOCK))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise CheckpointError(f"is damaged or cut off ({error}). Copy or download it again.") from None
        self._left -= len(block)
        self._allowed -= len(block)
        if self._left < 0:
            raise CheckpointError(f"unpacks to more than {self._total:,} bytes, as no weights do. It is not read.")
        if self._allowed < 0:
            raise CheckpointError(f"has over {self._header_bytes:,} bytes outside of its files. It is not read.")
        return block

    def allow(self, contents: int) -> None:
        """Up to the next header: the contents of one file, and what may lie around them."""
        self._allowed = contents + self._header_bytes

    def finish(self) -> None:
        """Reads what follows the last member: nothing but padding."""
        self.allow(0)
        while block := self.read():
            if block.strip(b"\0"):
                raise CheckpointError("goes on after its end. It is damaged: copy or download it again.")


def _unpacked(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.open(archive))
    if head[257:262] == b"ustar":
        return archive.open("rb")
    if not head:
        what = "it is empty"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "it is a web page"
    elif head.startswith(b"PK"):
        what = "it is a zip file"
    else:
        what = f"it begins with {head[:8]!r}"
    raise CheckpointError(f"is no tar archive (.tar.gz, .tar.xz, .tar): {what}. Copy or download it again.")


def _copy_from(tar: tarfile.TarFile, reader: _Bounded, target: Path, limits: Limits) -> str:
    names: dict[str, None] = {}  # in their order
    found: list[str] = []
    for member in tar:
        name = str(PurePosixPath(member.name))
        wrong = _wrong(member, name in names, limits)
        if len(names) == limits.members:
            wrong = f"comes after {limits.members:,} others"
        if wrong:
            raise CheckpointError(f"{_short(member.name)} {wrong}. No archive of weights needs that: it is not read.")
        names[name] = None
        reader.allow(member.size)
        if member.isreg() and _is_torch_file(name):
            found.append(name)
            if len(found) == 1:
                with target.open("wb") as file:
                    shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), file)
    if not found:
        kinds = ", ".join(TORCH_SUFFIXES)
        raise CheckpointError(f"has no torch file ({kinds}) but {_listed(list(names))}. Is it another archive?")
    if len(found) > 1:
        raise CheckpointError(f"has {len(found)} torch files ({_listed(found)}). Unpack it and give the right one.")
    return found[0]


def _wrong(member: tarfile.TarInfo, repeated: bool, limits: Limits) -> str | None:
    """What forbids reading on, if anything."""
    if member.issym() or member.islnk():
        return f"is a link to {_short(member.linkname)}"
    if not member.isdir() and (not member.isreg() or member.issparse()):
        return f"is neither a file nor a folder (type {member.type!r})"
    if re.match(r"/|[A-Za-z]:", member.name) or "\\" in member.name or ".." in member.name.split("/"):
        return "is a name that leads out of the folder"
    if repeated:
        return "is there twice"
    if not 0 <= member.size <= limits.member_bytes:
        return f"has {member.size:,} bytes, and {limits.member_bytes:,} are the limit"
    return None


def _is_torch_file(name: str) -> bool:
    """By its ending. Hidden files do not count: macOS puts one beside each file of an archive (``._model.pth``)."""
    path = PurePosixPath(name)
    return path.suffix.lower() in TORCH_SUFFIXES and not path.name.startswith(".")


def _check_records(path: Path) -> None:
    """``torch.save`` stores its records as they are; packed or shared ones could unpack to any size in memory."""
    if not zipfile.is_zipfile(path):
        return  # the format before PyTorch 1.6 has no packed records
    try:
        with zipfile.ZipFile(path) as records:
            unpacked = sum(record.file_size for record in records.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # zipfile's own for a method it lacks
        raise CheckpointError(f"{path} is damaged ({error}). Copy or download it again.") from None
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path} unpacks from {path.stat().st_size:,} to {unpacked:,} bytes, as no file of torch.save does. "
            "It is not read."
        )


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "...")


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "nothing at all"
    return ", ".join(_short(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


class _Number:
    """Stands for a number of NumPy's in a pickle; nothing is done with what it is made from."""

    def __init__(self, *given: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@functools.cache
def _numbers() -> list[Any]:
    """Classes of the names by which a pickle calls NumPy's numbers (before and since NumPy 2)."""
    names = (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype"))
    return [type(name, (_Number,), {"__module__": module}) for module, name in names]


@contextmanager
def _numbers_passed_over() -> Iterator[None]:
    """Lets ``weights_only`` pass over NumPy's numbers: ScaLR's schedule leaves them in the state of the optimiser.

    No code of NumPy runs for them, and none of their values is used.
    """
    with _one_reader:
        add_safe_globals(_numbers())
        try:
            yield
        finally:  # torch.serialization.safe_globals does this, since PyTorch 2.5
            others = [one for one in get_safe_globals() if one not in _numbers()]
            clear_safe_globals()
            add_safe_globals(others)
