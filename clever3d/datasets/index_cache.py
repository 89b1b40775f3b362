"""Arrays that take long to make from a data set's tables, kept in a file of the user's cache folder.

The folder is `CLEVER3D_CACHE`, else `clever3d` in `XDG_CACHE_HOME` or in `~/.cache`; in it, `index`. A file belongs to
the source files' names, sizes and times of change: when one of them differs, or the file is damaged, the arrays are
made again. Nothing in the cache can make opening a data set fail.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clever3d._cache import cache_folder
from clever3d.errors import DataError
from clever3d.io import atomic_path

logger = logging.getLogger(__name__)

Array: TypeAlias = NDArray[Any]


class StoredArrays:
    """Named arrays of a cache file, each read when it is asked for; of a long one, single rows can be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file: Any = safe_open(path, framework="np")
        self._file = file
        self.about: Mapping[str, str] = file.metadata() or {}
        self._slices: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Array:
        """The whole array."""
        return self._as_made(name, self._file.get_tensor(name))

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop` (excluded) of an array; only they are read."""
        if name not in self._slices:
            self._slices[name] = self._file.get_slice(name)
        return self._as_made(name, self._slices[name][start:stop])

    def damaged(self) -> bool:
        """Whether the content is another than was written: reads the file once."""
        return self.about.get("checksum") != _checksum((name, self._file.get_tensor(name)) for name in self._names())

    def _names(self) -> list[str]:
        return sorted(self._file.keys())

    def _as_made(self, name: str, array: Array) -> Array:
        return _to_text(array) if self.about.get(f"text {name}") else array


class MadeArrays(dict[str, Array]):
    """The same of arrays in memory, where they could not be stored."""

    path: Path | None = None

    def rows(self, name: str, start: int, stop: int) -> Array:
        return self[name][start:stop]


Arrays: TypeAlias = "StoredArrays | MadeArrays"

# What could not be stored, so that one process makes it once; the last few, by name and key.
_made: dict[tuple[str, str], MadeArrays] = {}
_MADE_AT_MOST = 4


def fingerprint(sources: Iterable[Path], version: int) -> str:
    """64 hex digits that change when a source file appears, vanishes, or has another size or time of change."""
    lines = [str(version)]
    for path in sources:
        try:
            status = path.stat()
            lines.append(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            lines.append(f"{path.absolute()} is not there")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cached_arrays(name: str, folder: Path, key: str, make: Callable[[], dict[str, Array]]) -> Arrays:
    """The arrays that `make` gives, from the cache if they are there under this key, else made and put there.

    name: such as "nuscenes-frames". folder: of the data set, so that two data sets have a file each. key: of the
    sources, see `fingerprint`. Raises whatever `make` raises, and nothing else.
    """
    path = _cache_file(name, folder)
    if path is not None and (stored := _stored(path, key)) is not None:
        return stored
    if (name, key) in _made:
        return _made[name, key]
    logger.info("making the index %s of %s, which can take some seconds", name, folder)
    arrays = make()
    if path is not None:
        try:
            _store(path, arrays, key)
            return StoredArrays(path)
        except (DataError, OSError, SafetensorError) as error:
            logger.warning(
                "the index cannot be kept (%s), so every process makes it anew; name a folder that can be written "
                "with CLEVER3D_CACHE",
                error,
            )
    while len(_made) >= _MADE_AT_MOST:
        del _made[next(iter(_made))]
    _made[name, key] = MadeArrays(arrays)
    return _made[name, key]


def _cache_file(name: str, folder: Path) -> Path | None:
    try:
        root = cache_folder()
    except RuntimeError:  # no home
        return None
    digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    return root / "index" / f"{name}-{digest}.safetensors"


def _stored(path: Path, key: str) -> StoredArrays | None:
    if not path.is_file():
        return None
    try:
        arrays = StoredArrays(path)
        if arrays.about.get("key") != key:
            logger.info("%s is of other tables, or of another release", path)
        elif arrays.damaged():
            logger.info("%s is damaged", path)
        else:
            return arrays
    except (SafetensorError, OSError, ValueError) as error:
        logger.info("%s cannot be read (%s)", path, error)
    return None


def _store(path: Path, arrays: Mapping[str, Array], key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"key": key} | {f"text {name}": "1" for name, array in arrays.items() if array.dtype.kind == "S"}
    plain = {name: _from_text(array) if array.dtype.kind == "S" else array for name, array in arrays.items()}
    plain = {name: np.ascontiguousarray(array) for name, array in sorted(plain.items())}
    with atomic_path(path) as draft:
        save_file(plain, draft, metadata=about | {"checksum": _checksum(plain.items())})


def _from_text(array: Array) -> Array:
    """Byte strings [...] of one length as numbers [..., length]: safetensors knows no text."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, array.dtype.itemsize)


def _to_text(array: Array) -> Array:
    return array.view(f"S{array.shape[-1]}")[..., 0]


def _checksum(arrays: Iterable[tuple[str, Array]]) -> str:
    value = 0
    for name, array in arrays:
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"
