"""Waymo's images as files of their own: the JPEGs lie inside Parquet files, and the rest of the package opens paths."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from clever3d._cache import cache_folder
from clever3d.datasets.arrow import cell, open_parquet, parquet_batches, row_group
from clever3d.errors import DataError
from clever3d.io import atomic_path

#: The column of the JPEG's bytes.
IMAGE = "[CameraImageComponent].image"


def image_folder() -> Path:
    """Where images go unless the caller says: `CLEVER3D_CACHE`, else the user's cache folder, and `waymo` in it."""
    return cache_folder() / "waymo"


def segment_folder(cache: Path, table: Path) -> Path:
    """The folder of one segment's images. Its name changes with the Parquet file: a new file is not mistaken for it."""
    try:
        state = table.stat()
    except OSError as error:
        raise DataError(f"{table} cannot be read ({error.strerror}); download it again") from error
    key = hashlib.sha256(f"{table.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    return cache / f"{table.stem}-{key[:12]}"


def extract(table: Path, wanted: Collection[int], paths: Mapping[int, Path]) -> None:
    """Writes the JPEGs of the rows `wanted`, byte for byte, and those of `paths` in the same row groups besides.

    A row group can only be read from its beginning, so what lies in it is written at once. Each file is written whole
    or not at all; files that are there stay. paths: row number -> where its image belongs.

    Raises DataError if the table is damaged, an image is empty, or a file cannot be written.
    """
    with open_parquet(table, (IMAGE,), "the cameras need") as file:
        groups = sorted({row_group(file, row) for row in wanted})
        for group, first in groups:
            row = first
            for batch in parquet_batches(file, group, (IMAGE,), table):
                for image in batch.column(IMAGE):
                    if row in paths and not paths[row].is_file():
                        _write(paths[row], cell(image), f"{table}: {IMAGE} of row {row}")
                    row += 1


def _write(path: Path, data: bytes | None, where: str) -> None:
    if not data:
        raise DataError(f"{where} is empty; download the file again, or leave the camera out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be made ({error.strerror}); pass images=FOLDER or set CLEVER3D_CACHE"
        ) from error
    with atomic_path(path) as draft:
        draft.write_bytes(data)
