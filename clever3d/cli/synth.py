"""``clever3d synth``: write a synthetic data set. Being written."""

from __future__ import annotations


def synth() -> None:
    """Write a whole synthetic data set in the layout of a real one."""
