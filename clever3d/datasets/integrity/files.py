"""The files that a frame is made of, how they are told apart from changed ones, and those that are not there."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from clever3d.datasets.base import Frame
from clever3d.datasets.camera import Distortion
from clever3d.errors import Clever3dError

File = tuple[str, int, int]  # path, size in bytes, modification time in ns; -1 and -1 where it is not there
Fault = tuple[str, str, str]  # kind, path, message
Reader = Callable[..., object]
_PLAIN = (str, bytes, int, float, tuple, type(None))  # whose text says all


def files_of(frame: Frame) -> list[Path]:
    """The files of a frame, each once: scan, images, sweeps, and those that its readers hold."""
    paths = [frame.points_path, *(camera.image_path for camera in frame.cameras)]
    paths += [sweep.points_path for sweep in frame.sweeps]
    for reader in (frame.read, frame.read_labels, frame.read_boxes):
        paths += _paths(reader)
    return [path for path in dict.fromkeys(paths) if not path.is_dir()]


def file_state(path: Path) -> File:
    """Size and time of a file as they are now."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


def files_unchanged(files: tuple[File, ...]) -> bool:
    """Whether all files still have the size and the time they had."""
    return all(file_state(Path(path)) == (path, size, changed) for path, size, changed in files)


def fingerprint(frame: Frame, unread: tuple[int, ...] = ()) -> str:
    """Changes with whatever the frame itself holds: names, paths, calibration, times, poses; not with its files.

    unread: places of the sweeps that are to be read with this frame.
    """
    digest = hashlib.sha256()
    parts: list[object] = [frame.dataset, frame.id, frame.scene, frame.timestamp, frame.points_to_world]
    parts += [frame.points_path, unread]
    for camera in frame.cameras:
        parts += [camera.name, camera.image_path, camera.intrinsics, camera.points_to_camera, camera.distortion]
        parts += [camera.image_size, camera.timestamp]
    for sweep in frame.sweeps:
        parts += [sweep.points_path, sweep.to_frame, sweep.seconds]
    for reader in (frame.read, frame.read_labels, frame.read_boxes):
        parts += [reader is None, *_arguments(reader)]
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(part.tobytes())
        elif isinstance(part, (*_PLAIN, Path, Distortion)):
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def scan_keys(frame: Frame) -> list[int]:
    """A number for the frame's scan and for each of its sweeps: the same for what is read from the same place."""
    scans = [(frame.points_path, frame.read)]
    scans += [(sweep.points_path, sweep.read or frame.read) for sweep in frame.sweeps]
    return [hash((str(path), repr([a for a in _arguments(read) if isinstance(a, _PLAIN)]))) for path, read in scans]


def own_file(frame: Frame, reader: Reader | None) -> str:
    """What a frame's reader of labels or boxes reads, as far as it shows: a file, else a folder of tables, else ""."""
    paths = [path for path in _paths(reader) if path != frame.points_path]
    return next((str(path) for path in sorted(paths, key=Path.is_dir)), "")


def missing_files(reader: Reader | None) -> list[Fault]:
    """A fault for each file of a reader that is not there."""
    return [fault for path in _paths(reader) if (fault := absence(path)) and fault[0] == "missing-file"]


def absent_files(reader: Reader | None) -> list[Fault]:
    """A fault for each file of a reader that is not there or is empty."""
    return [fault for path in _paths(reader) if (fault := absence(path))]


def absence(path: Path) -> Fault | None:
    """The fault of a file that is not there or has nothing in it; None for any other."""
    if path.is_symlink() and not path.exists():
        return "missing-file", str(path), f"{path} is a link to {path.readlink()}, which is not there"
    if not path.exists():
        return "missing-file", str(path), f"{path} does not exist"
    if path.is_file() and path.stat().st_size == 0:
        return "empty-file", str(path), f"{path} is empty (0 bytes)"
    return None


def says(error: Exception) -> str:
    """What an error says; with its type where it is not one of ours."""
    return str(error) if isinstance(error, Clever3dError) else f"{type(error).__name__}: {error}".rstrip(": ")


def file_in(message: str) -> str:
    """The file that an error's message begins with, if it is there; else ""."""
    ends = (match.start() for match in re.finditer(r"[:;,]? |: ?", message))
    return next((message[:end] for end in ends if Path(message[:end]).is_file()), "")


def _paths(reader: Reader | None) -> list[Path]:
    return [value for value in _arguments(reader) if isinstance(value, Path)]


def _arguments(reader: Reader | None) -> Iterator[object]:
    """The arguments that a reader holds, which is a partial of a module's function."""
    while isinstance(reader, functools.partial):
        yield from (*reader.args, *reader.keywords.values())
        reader = reader.func
