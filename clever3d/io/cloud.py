"""One point cloud from a file: the axes as the file has them, the intensity scaled to [0, 1], and what was assumed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clever3d.errors import DataError, InputError

PathLike: TypeAlias = "str | os.PathLike[str]"
FloatArray: TypeAlias = NDArray[np.float32]
# x, y, z; the intensity as the file has it, or None; how the file was understood; its frame.
RawCloud: TypeAlias = "tuple[NDArray[Any], NDArray[Any] | None, str, str]"

SUFFIXES = (".bin", ".npy", ".pcd")
# The first of these names that a file with named fields has is its intensity.
INTENSITY_NAMES = ("intensity", "intensities", "reflectance", "reflectivity", "remission", "i")

# The axis and the sign in (forward, left, up) of each direction that an axis of a file may have.
_DIRECTIONS = {"f": (0, 1.0), "b": (0, -1.0), "l": (1, 1.0), "r": (1, -1.0), "u": (2, 1.0), "d": (2, -1.0)}

# What a column must keep to be taken for a coordinate, an intensity, a ring; our choice. The bounds are wide (a cloud
# in millimetres or in map coordinates passes): with a wrong number of columns, coordinates land in the other columns
# and break them. 1 % of the rows may be junk.
_MAX_COORDINATE = 1e7
_MAX_INTENSITY = 65535.0
_MAX_RING = 255.0
_PLAUSIBLE_SHARE = 0.99
# An array of 3 or 4 rows with more columns than this is xyz lying on its side; our choice.
_MAX_COLUMNS = 32


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points of one scan.

    ``xyz`` [N, 3] float32, metres. ``intensity`` [N] float32 in [0, 1], or None where there is none. ``source`` says
    in one line how the file was understood. ``frame`` names where x, y and z point, as far as the format of the file
    tells: "rfu" (right, forward, up) for nuScenes, "flu" for all others; `to_flu` takes it. ``time`` [N] float32,
    seconds after the scan's timestamp, where points of several sweeps are together; else None.
    """

    xyz: FloatArray  # [N, 3]
    intensity: FloatArray | None  # [N]
    source: str
    frame: str = "flu"
    time: FloatArray | None = None  # [N]


def read_points(path: PathLike, *, columns: int | None = None, intensity_scale: float | None = None) -> PointCloud:
    """Read the points of one scan from a .bin, .npy or .pcd file.

    * ``.bin``: headerless float32 rows as in KITTI (x y z intensity) and nuScenes (x y z intensity ring). The number of
      columns is found from the values; ``columns`` says it instead (at least 3; further columns are not used).
    * ``.npy``: [N, 3] or [N, 4 or more] numbers, the fourth column being the intensity, or a structured array with the
      fields x, y, z and, if it has one, intensity.
    * ``.pcd``: ascii, binary or binary_compressed; needs ``pip install "clever3d[io]"``.

    The points keep the axes of the file, their number and their order; values that are not finite stay. An intensity of
    at most 1 is kept, one of at most 255 is divided by 255; ``intensity_scale`` is the full scale to divide by instead
    (what is then outside [0, 1] is clipped). Everything assumed is written in ``source``.

    Raises DataError for a file that is missing, empty, truncated, of an unknown kind, or that leaves a doubt that
    ``columns`` or ``intensity_scale`` must settle; InputError for arguments that cannot be; MissingExtraError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if columns is not None and (columns < 3 or suffix != ".bin"):
        raise InputError(f"columns={columns} for {path.name}: it is the number of columns of a .bin file, at least 3")
    if intensity_scale is not None and not 0 < intensity_scale < np.inf:
        raise InputError(f"the intensity scale must be a number above 0, got {intensity_scale}")
    check_file(path)
    if suffix == ".bin":
        xyz, intensity, source, frame = _read_bin_cloud(path, columns)
    elif suffix == ".npy":
        xyz, intensity, source, frame = _read_npy(path)
    elif suffix == ".pcd":
        from clever3d.io.pcd import read_pcd

        xyz, intensity, source, frame = read_pcd(path)
    else:
        raise DataError(f"{path}: cannot read {suffix or 'a file without a suffix'}; supported: {', '.join(SUFFIXES)}")
    if len(xyz) == 0:
        raise DataError(f"{path} has no points")
    if intensity is None:
        return PointCloud(np.ascontiguousarray(xyz, dtype=np.float32), None, f"{source}, no intensity", frame)
    scaled, how = _scale_intensity(path, intensity, intensity_scale)
    return PointCloud(np.ascontiguousarray(xyz, dtype=np.float32), scaled, f"{source}, {how}", frame)


def read_bin(path: PathLike, columns: int) -> FloatArray:
    """Read a headerless file of little-endian float32 rows (KITTI has 4 columns, nuScenes 5): [N, columns].

    Raises DataError when the file is missing, empty, or not a whole number of rows.
    """
    path = Path(path)
    if columns < 1:
        raise InputError(f"columns must be at least 1, got {columns}")
    size = check_file(path)
    if size % (4 * columns):
        raise DataError(
            f"{path} has {size} bytes, which is not a whole number of rows of {columns} float32 ({4 * columns} bytes): "
            "the file is truncated, or it has another number of columns"
        )
    return _read_floats(path).reshape(-1, columns)  # [N, columns]


def to_flu(xyz: FloatArray, frame: str) -> FloatArray:
    """Turn points [N, 3] whose x, y, z axes point where ``frame`` says into x forward, y left, z up: [N, 3].

    ``frame`` is three letters out of f(orward), b(ack), l(eft), r(ight), u(p), d(own): "rfu" for raw nuScenes scans,
    "flu" for KITTI (nothing changes). A left-handed frame such as CARLA's "fru" is mirrored into the right-handed one.

    Raises InputError for other letters, or two for the same axis.
    """
    letters = frame.lower()
    if len(letters) != 3 or not set(letters) <= set(_DIRECTIONS) or len({_DIRECTIONS[c][0] for c in letters}) != 3:
        raise InputError(
            f"frame {frame!r} is not three letters for where x, y, z point (one of f/b, one of l/r, one of u/d): "
            "flu (x forward, y left, z up; KITTI), rfu (x right, y forward, z up; raw nuScenes), ..."
        )
    flu = np.empty_like(xyz)
    for column, letter in enumerate(letters):
        axis, sign = _DIRECTIONS[letter]
        flu[:, axis] = sign * xyz[:, column]
    return flu


def check_file(path: Path) -> int:
    """Size in bytes of a file that is there and not empty; DataError otherwise."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give the path of one scan file ({', '.join(SUFFIXES)})")
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes)")
    return size


def intensity_name(names: tuple[str, ...]) -> str | None:
    """The field that holds the intensity among a file's field names, whatever their case."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[wanted] for wanted in INTENSITY_NAMES if wanted in by_lower), None)


def _read_floats(path: Path) -> FloatArray:
    try:
        return np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_bin_cloud(path: Path, columns: int | None) -> RawCloud:
    if columns is None:
        columns = _find_columns(path)
    rows = read_bin(path, columns)  # [N, columns]
    intensity = rows[:, 3] if columns > 3 else None
    if columns == 4:
        return rows[:, :3], intensity, "4 columns (x y z intensity, as in KITTI)", "flu"
    if columns == 5 and _looks_right(rows):
        return rows[:, :3], intensity, "5 columns (x y z intensity ring, as in nuScenes)", "rfu"
    return rows[:, :3], intensity, f"{columns} columns, the first {min(columns, 4)} used", "flu"


def _find_columns(path: Path) -> int:
    """4 or 5: the one number of columns with which every column of the file looks like what it should be."""
    size = check_file(path)
    if size % 4:
        raise DataError(f"{path} has {size} bytes, not a whole number of float32 values: truncated, copy it again")
    values = _read_floats(path)
    fitting = [n for n in (4, 5) if values.size % n == 0]
    if not fitting:
        raise DataError(
            f"{path} holds {values.size} float32 values, not a whole number of rows of 4 (KITTI) or 5 (nuScenes): "
            "it is truncated, or has another number of columns: say which with --columns (columns=)"
        )
    found = [n for n in fitting if _looks_right(values.reshape(-1, n))]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path} can have 4 columns (KITTI) or 5 (nuScenes): say which with --columns (columns=)")
    raise DataError(
        f"{path} does not look like float32 x y z intensity (KITTI, 4 columns) or x y z intensity ring (nuScenes, 5): "
        f"its {values.size} values fit {' or '.join(map(str, fitting))} columns by number, but not by what is in them. "
        "It is truncated, or no such scan, or has other columns: then say how many with --columns (columns=)"
    )


def _looks_right(rows: FloatArray) -> bool:
    """Whether rows [N, 4] look like x y z intensity, or rows [N, 5] like x y z intensity ring."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) == 0:
        return False
    right = (np.abs(rows[:, :3]) <= _MAX_COORDINATE).all(axis=1)  # [N]
    right &= (rows[:, 3] >= 0) & (rows[:, 3] <= _MAX_INTENSITY)
    if rows.shape[1] == 5:
        ring = rows[:, 4]
        right &= (ring >= 0) & (ring <= _MAX_RING) & (ring == np.round(ring))
    return bool(right.mean() >= _PLAUSIBLE_SHARE)


def _read_npy(path: Path) -> RawCloud:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is not a readable .npy file of numbers (truncated, or not .npy): {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an .npz archive, not .npy; save the one array [N, 3] or [N, 4] with numpy.save")
    names = array.dtype.names
    if names is not None:
        if missing := {"x", "y", "z"} - set(names):
            raise DataError(f"{path} has the fields {', '.join(names)}; missing: {', '.join(sorted(missing))}")
        array = array.reshape(-1)
        field = intensity_name(names)
        xyz = np.stack([array[axis] for axis in "xyz"], axis=1)  # [N, 3]
        return xyz, array[field] if field else None, f".npy with the fields {' '.join(names)}", "flu"
    if array.ndim != 2 or array.shape[1] < 3:
        raise DataError(f"{path} holds an array of shape {array.shape}; needed is [N, 3] or [N, 4] (x y z intensity)")
    if len(array) in (3, 4) and array.shape[1] > _MAX_COLUMNS:
        raise DataError(f"{path} holds an array of shape {array.shape}, one point per column; save its transpose")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds values of type {array.dtype}; needed are floats or integers")
    return array[:, :3], array[:, 3] if array.shape[1] > 3 else None, f".npy {array.dtype} {list(array.shape)}", "flu"


def _scale_intensity(path: Path, raw: NDArray[Any], scale: float | None) -> tuple[FloatArray, str]:
    """Intensity [N] scaled to [0, 1], and how in words."""
    intensity = raw.astype(np.float32)  # [N]
    if scale is not None:
        return np.clip(intensity / np.float32(scale), 0, 1), f"intensity divided by {scale:g} as asked"
    finite = intensity[np.isfinite(intensity)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if low < 0 or high > 255:
        most = float(np.quantile(finite, 0.99))
        raise DataError(
            f"the intensity of {path} goes from {low:g} to {high:g} (99 % up to {most:g}), neither 0..1 nor 0..255: "
            "give its full scale with --intensity-scale (intensity_scale=); negative values become 0. "
            "If these are not intensities, the columns may be others than assumed (--columns)"
        )
    if high > 1:
        return intensity / np.float32(255), f"intensity 0..255 (maximum {high:g}) divided by 255"
    hint = "; very low: if the sensor's full scale is known, give it" if 0 < high < 0.05 else ""
    return intensity, f"intensity 0..1 (maximum {high:.3g}{hint}) kept"
