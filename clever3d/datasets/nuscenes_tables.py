"""The JSON tables of nuScenes, read a piece at a time: the largest has 2.6 million rows in 1.3 GB.

Source of the tables' names and columns: nuscenes-devkit, docs/schema_nuscenes.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import (
    QUATERNION_TOLERANCE,
    Matrix,
    quaternion_to_rotation,
    unit_quaternions_to_rotations,
)
from clever3d.errors import DataError

# Bytes read at once. Measured from 16 KiB to 8 MiB: from 96 KiB on it takes twice as long, because memory for larger
# pieces and their rows is given back to the system and asked for again each time.
BLOCK = 1 << 16
# A row that has not ended after so many bytes is none. The longest of the official ones has under 2 kB.
_LONGEST_ROW = 1 << 20
_TOKEN = re.compile(rb'"token"\s*:\s*"([^"]*)"')


@dataclass(frozen=True)
class Rows:
    """Some rows of the table at `path`, taken apart by column. All methods raise DataError with path, column, row."""

    path: Path
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, column: str) -> list[Any]:
        """The column as it is."""
        try:
            return [row[column] for row in self.rows]
        except KeyError:
            token = next(row.get("token", "without a token") for row in self.rows if column not in row)
            raise DataError(
                f"{self.path}: a row has no {column} (row {token}); use the tables of nuScenes v1.0"
            ) from None

    def tokens(self, column: str) -> list[str]:
        """The column as it is, of texts."""
        values = self.values(column)
        if not {*map(type, values)} <= {str}:
            bad = next(i for i, value in enumerate(values) if type(value) is not str)
            raise self._error(column, bad, "no token")
        return values

    def numbers(self, column: str, shape: tuple[int, ...]) -> Matrix:
        """The column as finite float64 [rows, *shape]."""
        values = self.values(column)
        if not values:
            return np.zeros((0, *shape))
        array = _finite(values, (len(values), *shape))
        if array is None:
            bad = next(i for i, value in enumerate(values) if _finite(value, shape) is None)
            size = " x ".join(map(str, shape)) or "1"
            raise self._error(column, bad, f"not {size} finite numbers")
        return array

    def integers(self, column: str) -> NDArray[np.int64]:
        """The column as int64 [rows]."""
        values = self.values(column)
        if bad := [i for i, value in enumerate(values) if type(value) is not int or abs(value) >= 2**62]:
            raise self._error(column, bad[0], "not a whole number")
        return np.array(values, dtype=np.int64)

    def texts(self, column: str) -> NDArray[np.bytes_]:
        """The column as UTF-8 byte strings [rows]."""
        values = self.values(column)
        try:
            return np.array([value.encode() for value in values], dtype=np.bytes_)
        except (AttributeError, UnicodeEncodeError):
            bad = next(i for i, value in enumerate(values) if not _is_text(value))
            raise self._error(column, bad, "not text") from None

    def poses(self) -> Matrix:
        """Columns translation and rotation: x y z (metres) and a unit quaternion w x y z, [rows, 7]."""
        quaternions = self.numbers("rotation", (4,))
        lengths = np.linalg.norm(quaternions, axis=1)
        for bad in np.flatnonzero(np.abs(lengths - 1) > QUATERNION_TOLERANCE).tolist():  # raises
            quaternion_to_rotation(quaternions[bad], f"{self.path}: rotation of row {self._name(bad)}")
        return np.hstack([self.numbers("translation", (3,)), quaternions / lengths[:, None]])

    def links(self, column: str, known: Mapping[str, int], table: str) -> NDArray[np.int64]:
        """The column's tokens as what `known` says of them [rows]; `table` is the name of the table they lead to."""
        tokens = self.tokens(column)
        try:
            return np.array([known[token] for token in tokens], dtype=np.int64)
        except KeyError as error:
            raise dangling(self.path, column, error.args[0], table) from None

    def select(self, numbers: NDArray[np.integer]) -> Rows:
        """The rows of these numbers."""
        return Rows(self.path, [self.rows[number] for number in numbers.tolist()])

    def _name(self, row: int) -> Any:
        return self.rows[row].get("token", f"number {row + 1}")

    def _error(self, column: str, row: int, wrong: str) -> DataError:
        value = repr(self.rows[row][column])
        shown = value if len(value) < 80 else f"{value[:76]} ..."
        return DataError(f"{self.path}: {column} of row {self._name(row)} is {wrong}: {shown}; unpack the tables again")


class Numbering:
    """Numbers for tokens, in the order in which they are first met: lighter than the tokens, and quick to follow."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {"": 0}  # no token: the first of a chain has no `prev`

    def of(self, rows: Rows, column: str) -> NDArray[np.int64]:
        """The numbers of a column's tokens [rows], new ones where a token is new."""
        known = self.known
        return np.array([known.setdefault(token, len(known)) for token in rows.tokens(column)], dtype=np.int64)

    def rows(self, own: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
        """Number -> row, or -1, where the rows' own tokens have the numbers `own`. DataError if two have the same."""
        row_of = np.full(len(self.known), -1, dtype=np.int64)
        row_of[own] = np.arange(len(own))
        if len(again := np.flatnonzero(row_of[own] != np.arange(len(own)))):
            raise DataError(f"{path}: two rows have the token {self.token(own[again[0]])!r}; unpack the tables again")
        return row_of

    def token(self, number: int) -> str:
        """The token of a number, for errors."""
        return next(token for token, known in self.known.items() if known == number)


def dangling(path: Path, column: str, token: object, table: str) -> DataError:
    """The error for a token that leads nowhere."""
    other = path.with_name(f"{table}.json")
    return DataError(f"{other} has no row {token!r}, which {column} in {path.name} names; use tables of one version")


def whole_table(tables: Path, name: str) -> Rows:
    """All rows of a small table. Raises DataError if it is missing, no JSON, or no list of rows."""
    path = tables / f"{name}.json"
    return Rows(path, [row for rows in stream(path) for row in rows.rows])


def stream(path: Path, wanted: Container[bytes] | None = None) -> Iterator[Rows]:
    """The rows of a table, a hundred or so at a time, in order; memory does not grow with the table.

    wanted: only rows with these tokens matter. Where the others can be told from their text they are left out unread,
    which takes about half of the time.

    Raises DataError if the file is missing, no JSON, or no list of rows.
    """
    try:
        with path.open("rb") as file:
            for rows in _pieces(file, path, wanted):
                if not {*map(type, rows)} <= {dict}:
                    raise _no_rows(path)
                yield Rows(path, rows)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); unpack nuScenes' metadata there") from error


def token_numbers(rows: Rows) -> dict[str, int]:
    """The rows' own tokens -> their numbers. Raises DataError if two rows have one token."""
    numbers: dict[str, int] = {}
    for number, token in enumerate(rows.tokens("token")):
        if numbers.setdefault(token, number) != number:
            raise DataError(f"{rows.path}: two rows have the token {token!r}; unpack the tables again, or remove one")
    return numbers


def transforms(poses: Matrix) -> Matrix:
    """[..., 4, 4] of poses [..., 7] as `Rows.poses` gives them."""
    matrices = np.zeros((*poses.shape[:-1], 4, 4))
    matrices[..., :3, :3] = unit_quaternions_to_rotations(poses[..., 3:])
    matrices[..., :3, 3] = poses[..., :3]
    matrices[..., 3, 3] = 1.0
    return matrices


def _pieces(file: BinaryIO, path: Path, wanted: Container[bytes] | None) -> Iterator[list[Any]]:
    """Lists of rows: the text up to a closing brace is one piece, if it is JSON (a brace can also be inside a row)."""
    pending = file.read(BLOCK).lstrip()
    if pending[:1] != b"[":
        raise _no_rows(path) if pending else _no_json(path, "it is empty")
    pending, first, wrong = pending[1:], True, ""
    while True:
        cut = pending.rfind(b"}") + 1
        if cut:
            try:
                yield _decode(pending[:cut], first, wanted)
                pending, first, wrong = pending[cut:], False, ""
            except (ValueError, RecursionError) as error:  # broken, no UTF-8, or cut inside a row
                wrong = str(error)
        block = file.read(BLOCK)
        if not block or len(pending) > _LONGEST_ROW:
            break
        pending += block
    if pending.strip() != b"]":
        begin = file.tell() - len(pending) - len(block)
        raise _no_json(path, wrong or "it ends in the middle of a row", f" after byte {begin}")


def _decode(piece: bytes, first: bool, wanted: Container[bytes] | None) -> list[Any]:
    text = piece.lstrip()
    if not first:
        if text[:1] != b",":
            raise ValueError("there is no comma between two rows")
        text = text[1:]
    if wanted is not None:
        text = _without_others(text, wanted)
    rows: list[Any] = json.loads(b"[" + text + b"]")
    return rows


def _without_others(text: bytes, wanted: Container[bytes]) -> bytes:
    """The rows with these tokens; or all rows, unless each closing brace ends a row that has one plain token."""
    rows = text.split(b"}")[:-1]
    tokens = _TOKEN.findall(text)
    if len(rows) != len(tokens) or text.count(b"{") != len(rows) or b"\\" in text:
        return text
    kept = b"}".join(row for row, token in zip(rows, tokens, strict=True) if token in wanted)
    return kept.lstrip(b", \t\r\n") + b"}" if kept else b""


def _no_json(path: Path, why: str, where: str = "") -> DataError:
    return DataError(f"{path} is no valid JSON{where} ({why}); unpack it again")


def _no_rows(path: Path) -> DataError:
    return DataError(f"{path} is not a list of rows; unpack it again")


def _finite(values: object, shape: tuple[int, ...]) -> Matrix | None:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.shape == shape and np.isfinite(array).all() else None


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False
