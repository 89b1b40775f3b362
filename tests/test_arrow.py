"""Arrow tables: what pyarrow raises on damaged files becomes an error with the file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from clever3d.datasets.arrow import cell, read_feather
from clever3d.errors import DataError


def test_cells_are_arrays_values_or_none() -> None:
    np.testing.assert_array_equal(cell(pa.scalar([1.5, 2.5])), [1.5, 2.5])
    assert cell(pa.scalar(7)) == 7
    assert cell(pa.scalar({"x": 1})) == {"x": 1}  # a struct where a list should be: the caller sees that it is none
    assert cell(pa.scalar(None, pa.int64())) is None


@pytest.mark.parametrize("error", [pa.ArrowInvalid, pa.ArrowMemoryError, OSError])
def test_whatever_pyarrow_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    path = tmp_path / "poses.feather"
    feather.write_feather(pa.table({"x": [1.0]}), path)
    assert read_feather(path, ["x"], "poses need")["x"].tolist() == [1.0]

    def damaged(*arguments: object, **options: object) -> None:
        raise error("malloc of size 4611686018427387904 failed")

    monkeypatch.setattr(feather, "read_table", damaged)
    with pytest.raises(DataError, match=r"poses\.feather is no readable Feather file .*; download it again"):
        read_feather(path, ["x"], "poses need")
