"""Point-cloud files in, features out. Knows nothing of the rest of the package."""

from __future__ import annotations

from clever3d.io.cloud import PointCloud, read_bin, read_points, to_flu
from clever3d.io.output import atomic_path, check_output, save_npz

__all__ = ["PointCloud", "atomic_path", "check_output", "read_bin", "read_points", "save_npz", "to_flu"]
