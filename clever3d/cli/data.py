"""``clever3d data``: look after data sets. Being written."""

from __future__ import annotations


def check() -> None:
    """Walk a data set and report every damaged file."""
