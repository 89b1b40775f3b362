"""PCD files (ascii, binary, binary_compressed) through pypcd4.

pypcd4 reads the common files; here their headers are first brought to the form that it takes, since files of other
writers lack COUNT, carry the version differently, or have padding fields of COUNT 0 (SUSTechPOINTS).
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np

from clever3d.errors import DataError, MissingExtraError
from clever3d.io.cloud import RawCloud, intensity_name

_PER_FIELD = ("FIELDS", "SIZE", "TYPE", "COUNT")


def read_pcd(path: Path) -> RawCloud:
    """x, y, z [N, 3], the intensity [N] as the file has it or None, how the file was understood, and its frame.

    Raises DataError for a file that is not PCD, is truncated or has no x, y, z; MissingExtraError without pypcd4.
    """
    try:
        from pypcd4 import PointCloud as Pcd  # type: ignore[attr-defined]
    except ImportError as error:
        raise MissingExtraError(f'reading {path.name} needs pypcd4: pip install "clever3d[io]"') from error
    header, body = _split(path)
    text = "".join(f"{key} {' '.join(words)}\n" for key, words in header.items())
    try:
        cloud = Pcd.from_fileobj(io.BufferedReader(io.BytesIO(text.encode() + body)))
        points = np.atleast_1d(cloud.pc_data)
    # What numpy, lzf, struct and pydantic (a ValueError) raise on a short or broken file; pypcd4 wraps none of it.
    except (ValueError, TypeError, KeyError, RuntimeError, struct.error) as error:
        raise DataError(f"{path} is truncated or not valid PCD: {error}") from error
    if len(points) != cloud.metadata.points:
        raise DataError(f"{path} is truncated: its header says {cloud.metadata.points} points, it has {len(points)}")
    names = tuple(points.dtype.names or ())
    by_lower = {name.lower(): name for name in names}
    if missing := [axis for axis in "xyz" if axis not in by_lower]:
        raise DataError(f"{path} has the fields {' '.join(header['FIELDS'])}; missing: {' '.join(missing)}")
    xyz = np.stack([points[by_lower[axis]] for axis in "xyz"], axis=1)  # [N, 3]
    field = intensity_name(names)
    used = "x y z" + (f" {field}" if field else "")
    source = f"PCD {cloud.metadata.data.value}, fields {used}"
    return xyz, points[field] if field else None, source, "flu"


def _split(path: Path) -> tuple[dict[str, list[str]], bytes]:
    """The header as keyword -> words, in the form that pypcd4 takes, and the bytes that follow it."""
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        line = file.readline(4096)
        words = line.decode("ascii", errors="replace").split("#")[0].split()
        if not line or (words and not words[0].isalpha()):
            raise DataError(f"{path} is not a PCD file: its header has no line DATA")
        if words:
            header[words[0].upper()] = words[1:]
    if missing := [key for key in ("FIELDS", "SIZE", "TYPE", "WIDTH", "POINTS") if not header.get(key)]:
        raise DataError(f"{path} is not a valid PCD file: its header lacks {', '.join(missing)}")
    fields = header["FIELDS"]
    header.setdefault("COUNT", ["1"] * len(fields))
    if any(len(header[key]) != len(fields) for key in _PER_FIELD):
        raise DataError(f"{path} is not a valid PCD file: FIELDS, SIZE, TYPE and COUNT differ in length")
    kept = [i for i, count in enumerate(header["COUNT"]) if count != "0"]
    # Padding gets names of its own: several fields may be called "_".
    header["FIELDS"] = [f"pad{i}" if name == "_" else name for i, name in enumerate(fields)]
    for key in _PER_FIELD:
        header[key] = [header[key][i] for i in kept]
    header["VERSION"] = ["0.7"]
    header["DATA"] = [word.lower() for word in header.pop("DATA")]  # popped: it has to stay the last line
    return header, file.read()
