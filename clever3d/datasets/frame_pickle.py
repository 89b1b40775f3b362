"""Columns of a pickled pandas DataFrame, read without pandas and without running anything that the file asks for.

A pickle is a program: opened as usual, one from a download can run whatever its author likes. Here every name in it
is looked up in the table below, and all but `slice` are stand-ins that only keep what they are given; the arrays are
made from that afterwards.
Sources of the layout: pandas' `core/internals/managers.py` and `core/indexes/base.py` (pandas 1.0, by which PandaSet
was written) and `_libs/internals.pyx` (later ones); numpy's `ndarray.__reduce__`; the Python documentation,
"Restricting Globals".
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clever3d.errors import DataError

# What reading a damaged pickle raises (the pickle module's documentation lists some, and says that there are others).
_DAMAGED = (OSError, EOFError, zlib.error, pickle.UnpicklingError, ValueError, TypeError, IndexError, KeyError,
            AttributeError, ImportError, OverflowError, MemoryError)  # fmt: skip


class _Kept:
    """Stands for a pandas class: keeps the arguments of its construction and its state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Frame(_Kept):
    """pandas.DataFrame."""


class _Manager(_Kept):
    """pandas' BlockManager: the columns of one type together in one array."""


class _Index(_Kept):
    """Any pandas index, of rows or of columns."""


class _Block(_Kept):
    """Values [columns, rows] and which columns of the frame they are."""


class _Dtype(_Kept):
    """numpy.dtype: called with its code, such as "f8"; the second of its state is the byte order."""

    def dtype(self) -> np.dtype[Any]:
        code = str(self.arguments[0])
        if not re.fullmatch(r"[fiub]\d|O8?", code):
            raise TypeError(f"values of type {code}")
        return np.dtype("O") if code[0] == "O" else np.dtype(f"{self.state[1]}{code}")


class _Array(_Kept):
    """numpy.ndarray: its state is (version, shape, dtype, whether columns come first, bytes or list of objects)."""

    def array(self) -> NDArray[Any]:
        _, shape, dtype, fortran, data = self.state
        if dtype.dtype() == np.dtype("O"):
            values = np.empty(len(data), dtype=object)
            values[:] = data
        else:
            values = np.frombuffer(data, dtype.dtype())
        shaped: NDArray[Any] = values.reshape(shape, order="F" if fortran else "C")
        return shaped


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _from_buffer(buffer: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", buffer)
    return array


def _new_index(kind: Any, fields: dict[str, Any]) -> _Index:
    return _Index(fields)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.base", "Index"): _Index,
    ("pandas", "Index"): _Index,
    ("pandas.core.indexes.range", "RangeIndex"): _Index,
    ("pandas", "RangeIndex"): _Index,
    ("pandas.core.indexes.numeric", "Int64Index"): _Index,
    ("builtins", "slice"): slice,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Refused(Exception):
    """A name that no table needs."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_frame_pickle(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The named columns of the DataFrame in a gzipped pickle, each an array [rows], in the order of its rows.

    Raises DataError if the file is missing, truncated, no DataFrame of the published layout, lacks a column, or holds
    any name but pandas' and numpy's (nothing of it is run).
    """
    try:
        frame = _Unpickler(io.BytesIO(gzip.decompress(path.read_bytes()))).load()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; the download is incomplete") from error
    except _Refused as error:
        raise DataError(
            f"{path} asks for {error}, which no published table holds; it was not opened, because a pickle can run "
            "programs: use the published file (one saved again by another pandas may also hold what is not known here)"
        ) from error
    except _DAMAGED as error:
        raise DataError(f"{path} is no readable pickle of a table (truncated?): {error}; download it again") from error
    try:
        table = _columns(frame)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no table in a known layout of pandas; use the published file") from error
    if missing := [column for column in columns if column not in table]:
        raise DataError(f"{path} has no column {', '.join(missing)} (it has: {', '.join(table)}); download it again")
    return {column: table[column] for column in columns}


def _columns(frame: _Frame) -> dict[str, NDArray[Any]]:
    """All columns of an unpickled frame. Raises whatever a wrong structure leads to."""
    if not isinstance(frame, _Frame):
        raise TypeError(f"{type(frame)} is no DataFrame")
    state = frame.state
    manager = state["_mgr"] if "_mgr" in state else state["_data"]  # since, and before, pandas 1.1
    if manager.state is not None:  # axes, values, items, {version: the same, better}
        layout = manager.state[3]["0.14.1"]
        axes = layout["axes"]
        blocks = [(block["values"], block["mgr_locs"]) for block in layout["blocks"]]
    else:
        blocks, axes = manager.arguments[:2]
        blocks = [block.arguments[:2] for block in blocks]
    names = [str(name) for name in axes[0].arguments[0]["data"].array()]
    table: dict[str, NDArray[Any]] = {}
    for block, places in blocks:
        values = block.array()  # [columns of one type, rows]
        taken = range(len(names))[places] if isinstance(places, slice) else places.array()
        table.update({names[place]: row for place, row in zip(taken, values, strict=True)})
    if set(table) != set(names) or len({len(column) for column in table.values()}) > 1:
        raise ValueError("columns without values, or of different lengths")
    return {name: table[name] for name in names}
