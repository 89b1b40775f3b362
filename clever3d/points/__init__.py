"""From points to voxels and back: input spec, checks, voxelisation. Tensors only, no files."""

from clever3d.points.checks import CheckedPoints, check_points
from clever3d.points.neighbors import nearest_neighbors
from clever3d.points.spec import InputSpec
from clever3d.points.voxels import Voxels, voxelize

__all__ = ["CheckedPoints", "InputSpec", "Voxels", "check_points", "nearest_neighbors", "voxelize"]
