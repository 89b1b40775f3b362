"""Casting rays on triangles with Embree: what stands still is prepared once, what moves once for each moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.synthetic.mesh import Floats, Ints, Mesh
from clever3d.errors import MissingExtraError

_FAR = 1e4  # m: beyond everything


@dataclass(frozen=True, eq=False)
class Hits:
    """Where R rays end. triangle [R]: row of the view's meshes, -1 for none. distance [R]: in lengths of the direction,
    infinite for none. barycentric [R, 2]: weights of the triangle's second and third corner."""

    triangle: Ints
    distance: Floats
    barycentric: Floats


def _embree() -> tuple[Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise MissingExtraError(
            'the embedded world casts rays with Embree: pip install "clever3d[synthetic]"'
        ) from error
    return EmbreeScene, TriangleMesh


class Tracer:
    """An Embree scene of one mesh; an empty one is never hit. Raises MissingExtraError without embreex."""

    def __init__(self, mesh: Mesh) -> None:
        scene_type, mesh_type = _embree()
        self.mesh = mesh
        self._scene = None
        if len(mesh):
            self._scene = scene_type()
            self._geometry = mesh_type(self._scene, mesh.corners)

    def cast(self, origins: Floats, directions: Floats, far: Floats) -> dict[str, NDArray[Any]] | None:
        """The nearest hits closer than `far` [R]; `primID` is -1 elsewhere."""
        if self._scene is None:
            return None
        hits: dict[str, NDArray[Any]] = self._scene.run(origins, directions, far.copy(), output=True)
        return hits

    def blocked(self, origins: Floats, directions: Floats, far: float) -> NDArray[np.bool_]:
        """Whether anything is met closer than `far`; directions [R, 3], or [1, 3] for one that all share."""
        if self._scene is None:
            return np.zeros(len(origins), dtype=bool)
        met: NDArray[np.bool_] = self._scene.run(origins, directions, float(far), query="OCCLUDED") >= 0
        return met


class View:
    """The still and the moving triangles of one moment, numbered through: the still ones first."""

    def __init__(self, still: Tracer, moving: Tracer) -> None:
        self.still, self.moving = still, moving
        self.count = len(still.mesh) + len(moving.mesh)

    def cast(self, origins: Floats, directions: Floats, far: float = _FAR) -> Hits:
        """The first triangles met by rays from [R, 3] along [R, 3]."""
        limit = np.full(len(origins), far, dtype=np.float32)
        triangle = np.full(len(origins), -1, dtype=np.int32)
        barycentric = np.zeros((len(origins), 2), dtype=np.float32)
        for tracer, offset in ((self.still, 0), (self.moving, len(self.still.mesh))):
            hits = tracer.cast(origins, directions, limit)
            if hits is None:
                continue
            met = hits["primID"] >= 0
            triangle[met] = hits["primID"][met] + offset
            barycentric[met, 0], barycentric[met, 1] = hits["u"][met], hits["v"][met]
            limit[met] = hits["tfar"][met]
        limit[triangle < 0] = np.inf
        return Hits(triangle, limit, barycentric)

    def blocked(self, origins: Floats, directions: Floats, far: float = _FAR) -> NDArray[np.bool_]:
        """Whether rays [R, 3] along [R, 3] or [1, 3] meet anything closer than `far`: [R]."""
        met = self.still.blocked(origins, directions, far)
        met |= self.moving.blocked(origins, directions, far)
        return met

    def take(self, field: str, triangle: Ints) -> NDArray[Any]:
        """The values of a field of Mesh at triangles [R] that were hit."""
        first = len(self.still.mesh)
        still, moving = getattr(self.still.mesh, field), getattr(self.moving.mesh, field)
        if not len(moving):
            return still[triangle]  # type: ignore[no-any-return]
        late = np.flatnonzero(triangle >= first)
        values: NDArray[Any] = still[np.minimum(triangle, first - 1)]
        values[late] = moving[triangle[late] - first]
        return values

    def interpolate(self, field: str, triangle: Ints, barycentric: Floats) -> Floats:
        """The values of a field given at corners, between them: [R, ...]."""
        corner = self.take(field, triangle)  # [R, 3, C]
        u, v = barycentric[:, :1], barycentric[:, 1:]
        value: Floats = corner[:, 0] * (1 - u - v) + corner[:, 1] * u + corner[:, 2] * v
        return value
