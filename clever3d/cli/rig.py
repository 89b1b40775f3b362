"""``clever3d rig``: a data set of your own sensors. Being written."""

from __future__ import annotations


def new() -> None:
    """Write a commented rig.yaml."""


def check() -> None:
    """Check the calibration of a rig folder."""
