"""Synthetic data. `street_scan` is one quick scan with numpy alone; `world` and what stands on it are whole data sets
with images and truth, and need the extra `synthetic`."""

from __future__ import annotations

from clever3d.datasets.synthetic.street import SyntheticScan, street_scan, street_scene

__all__ = ["SyntheticScan", "street_scan", "street_scene"]
