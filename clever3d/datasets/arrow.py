"""Columns of Feather and Parquet files as arrays, with errors that name the file and the column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clever3d.errors import DataError, MissingExtraError

#: What pyarrow raises on damaged files: ArrowInvalid is a ValueError, ArrowMemoryError (a length with a flipped bit) a
#: MemoryError.
UNREADABLE = (OSError, ValueError, MemoryError)


def pyarrow_module(module: str, path: Path) -> Any:
    """`pyarrow.feather`, `pyarrow.parquet`, ...; MissingExtraError, which names `path`, where pyarrow is missing."""
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise MissingExtraError(f'reading {path} needs pyarrow: pip install "clever3d[io]"') from error


def read_feather(path: Path, columns: Sequence[str], needed_for: str) -> dict[str, NDArray[Any]]:
    """The named columns of a Feather file, each an array [rows].

    Raises DataError if the file is missing, truncated or no Feather file, lacks a column or has an empty cell in one;
    MissingExtraError without pyarrow.
    """
    feather = pyarrow_module("feather", path)
    try:
        table = feather.read_table(path, use_threads=False)  # workers of a loader are many already
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; {needed_for} it") from error
    except UNREADABLE as error:
        raise DataError(f"{path} is no readable Feather file (truncated?): {error}; download it again") from error
    return table_columns(table, columns, path)


def table_columns(table: Any, columns: Sequence[str], path: Path) -> dict[str, NDArray[Any]]:
    """The named flat columns of an Arrow table read from `path`; DataError for one that is missing or has gaps."""
    require_columns(table.column_names, columns, path)
    for column in columns:
        if table[column].null_count:
            raise DataError(f"{path}: column {column} has {table[column].null_count} empty cells; download it again")
    return {column: table[column].to_numpy() for column in columns}


def require_columns(found: Sequence[str], columns: Sequence[str], path: Path) -> None:
    """DataError, with what there is, unless all `columns` are among those `found` in `path`."""
    if missing := [column for column in columns if column not in found]:
        raise DataError(f"{path} has no column {', '.join(missing)} (it has: {', '.join(found)}); download it again")


def stack(columns: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """The named columns [rows] side by side as float64 [rows, len(names)]."""
    return np.stack([columns[name].astype(np.float64) for name in names], axis=1)


def open_parquet(path: Path, columns: Sequence[str], needed_for: str) -> Any:
    """A pyarrow ParquetFile that has `columns`; only its footer is read.

    Raises DataError if the file is missing, truncated or no Parquet file, or lacks a column; MissingExtraError.
    """
    parquet = pyarrow_module("parquet", path)
    try:
        file = parquet.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; {needed_for} it") from error
    except UNREADABLE as error:
        raise DataError(f"{path} is no readable Parquet file (truncated?): {error}; download it again") from error
    try:
        require_columns(file.schema_arrow.names, columns, path)
    except DataError:
        file.close()
        raise
    return file


def read_parquet(path: Path, columns: Sequence[str], needed_for: str) -> Any:
    """All rows of `columns`, nothing of the others: a pyarrow Table. Raises as `open_parquet`."""
    with open_parquet(path, columns, needed_for) as file:
        try:
            return file.read(columns=list(columns), use_threads=False)
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be decoded (damaged?): {error}; download it again") from error


def parquet_batches(file: Any, group: int, columns: Sequence[str], path: Path) -> Iterator[Any]:
    """The rows of one row group in small batches, so that no more than a few are in memory. Raises DataError."""
    try:
        yield from file.iter_batches(batch_size=4, row_groups=[group], columns=list(columns), use_threads=False)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be decoded (damaged?): {error}; download it again") from error


def row_group(file: Any, row: int) -> tuple[int, int]:
    """The row group that holds row number `row`, and the number of its first row."""
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = int(file.metadata.row_group(group).num_rows)
        if row < first + count:
            return group, first
        first += count
    raise IndexError(row)


def read_parquet_row(path: Path, row: int, columns: Sequence[str], needed_for: str) -> dict[str, Any]:
    """One row: a numpy array for a column of lists, a Python value for another, None for an empty cell.

    Only the named columns of the row group that holds the row are decoded, up to the row. Raises as `open_parquet`.
    """
    with open_parquet(path, columns, needed_for) as file:
        group, first = row_group(file, row)
        for batch in parquet_batches(file, group, columns, path):
            if row < first + batch.num_rows:
                return {name: cell(batch.column(name)[row - first]) for name in columns}
            first += batch.num_rows
    raise DataError(f"{path} ends before row {row}, which its footer lists; download it again")


def cell(scalar: Any) -> Any:
    """An Arrow scalar as a numpy array (of a list), a Python value, or None."""
    if not scalar.is_valid:
        return None
    values: Any = getattr(scalar, "values", None)
    if not hasattr(values, "to_numpy"):  # no list; of a struct, `values` is a method
        return scalar.as_py()
    return values.to_numpy(zero_copy_only=False)


def transforms(table: Any, column: str, path: Path) -> NDArray[np.float64]:
    """A column of 16 numbers each as matrices [rows, 4, 4]; DataError where a row has another number."""
    lists = table[column].to_pylist()
    for row, values in enumerate(lists):
        if values is None or len(values) != 16:
            raise DataError(f"{path}: {column} of row {row} is no 4 x 4 matrix ({values}); download it again")
    return np.array(lists, dtype=np.float64).reshape(-1, 4, 4)
