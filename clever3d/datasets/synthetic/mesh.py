"""Triangle meshes with what a ray needs to know of a surface, and the few solids that everything here is built of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clever3d.datasets.geometry import Matrix
from clever3d.errors import InputError

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

_CORNERS = np.array([[x, y, z] for z in (-1.0, 1.0) for x, y in ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))])
_FIELDS = ("corners", "normals", "uv", "material", "label", "instance", "tint")
_FACES = np.array([[3, 2, 1, 0], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])


@dataclass(frozen=True, eq=False)
class Mesh:
    """T triangles, each with its own three corners.

    corners [T, 3, 3]: metres. normals [T, 3, 3]: unit, at the corners, for shading only. uv [T, 3, 2]: texture
    coordinates in metres along the surface. material [T]: row of the scene's material table. label [T]: index into
    truth.CLASSES. instance [T]: 0 for none. tint [T]: factor on the colour, 1 for none.
    """

    corners: Floats
    normals: Floats
    uv: Floats
    material: Ints
    label: NDArray[np.uint8]
    instance: Ints
    tint: Floats

    def __len__(self) -> int:
        return len(self.corners)

    def moved(self, rotation: ArrayLike, translation: ArrayLike) -> Mesh:
        """The mesh turned by `rotation` [3, 3], then shifted by `translation` [3]."""
        turn = np.asarray(rotation, dtype=np.float32).T
        shift = np.asarray(translation, dtype=np.float32)
        return replace(self, corners=self.corners @ turn + shift, normals=self.normals @ turn)

    def scaled(self, factor: float) -> Mesh:
        """The mesh scaled about the origin by one factor; texture coordinates stay as they are."""
        return replace(self, corners=self.corners * np.float32(factor))

    def owned(self, instance: int, label: int | None = None) -> Mesh:
        """The mesh as one instance, and of one label if that is given."""
        labels = self.label if label is None else np.full(len(self), label, dtype=np.uint8)
        return replace(self, instance=np.full(len(self), instance, dtype=np.int32), label=labels)

    def tinted(self, tint: ArrayLike) -> Mesh:
        """The mesh with its colours multiplied by `tint`, one number or [T]."""
        return replace(self, tint=self.tint * np.broadcast_to(np.asarray(tint, dtype=np.float32), self.tint.shape))

    def painted(self, material: int) -> Mesh:
        """The mesh of one other material."""
        return replace(self, material=np.full(len(self), material, dtype=np.int32))

    def bounds(self) -> tuple[Matrix, Matrix]:
        """The lowest and the highest corner coordinates, [3] each."""
        points = self.corners.reshape(-1, 3).astype(np.float64)
        return points.min(axis=0), points.max(axis=0)


def shifted(point: Matrix, x: float, y: float, z: float) -> Matrix:
    """The point [3] moved by x, y and z."""
    moved: Matrix = point + np.array((x, y, z))
    return moved


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """All triangles of several meshes, in order."""
    if not meshes:
        return triangles(np.zeros((0, 3, 3)), 0, 0)
    return Mesh(*(np.concatenate([getattr(mesh, field) for mesh in meshes]) for field in _FIELDS))


def repeat(mesh: Mesh, offsets: ArrayLike) -> Mesh:
    """The mesh once at each of N offsets [N, 3]."""
    shift = np.asarray(offsets, dtype=np.float32).reshape(-1, 1, 1, 3)  # [N, 1, 1, 3]
    count = len(shift)
    corners = (mesh.corners[None] + shift).reshape(-1, 3, 3)
    copies = (
        np.concatenate([getattr(mesh, name)] * count)
        for name in ("normals", "uv", "material", "label", "instance", "tint")
    )
    return Mesh(corners, *copies) if count else merge([])


def triangles(
    corners: ArrayLike,
    material: int,
    label: int,
    *,
    uv: ArrayLike | None = None,
    normals: ArrayLike | None = None,
) -> Mesh:
    """Triangles [T, 3, 3]; flat normals and texture coordinates from x, y (or the wall's length, z) unless given."""
    points = np.ascontiguousarray(corners, dtype=np.float32)
    flat = face_normals(points)  # [T, 3]
    if normals is None:
        normals = np.repeat(flat[:, None], 3, axis=1)
    if uv is None:
        uv = _planar(points, flat)
    count = len(points)
    return Mesh(
        points,
        np.ascontiguousarray(normals, dtype=np.float32),
        np.ascontiguousarray(uv, dtype=np.float32),
        np.full(count, material, dtype=np.int32),
        np.full(count, label, dtype=np.uint8),
        np.zeros(count, dtype=np.int32),
        np.ones(count, dtype=np.float32),
    )


def face_normals(corners: Floats) -> Floats:
    """Unit normals [T, 3] of triangles [T, 3, 3], counter-clockwise seen from outside."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal = np.empty_like(a)  # written out: np.cross and np.linalg.norm take several times as long
    normal[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    normal[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    normal[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    normal /= np.sqrt(np.maximum(np.einsum("ij,ij->i", normal, normal), 1e-24))[:, None]
    return normal


def _planar(corners: Floats, normals: Floats) -> Floats:
    """Texture coordinates [T, 3, 2]: from above for level surfaces, along and up the wall for steep ones."""
    steep = np.abs(normals[:, 2]) < 0.7
    level = corners[..., :2]
    across_x = np.abs(normals[:, 0]) > np.abs(normals[:, 1])
    along = np.where(across_x[:, None], corners[..., 1], corners[..., 0])
    wall = np.stack([along, corners[..., 2]], axis=-1)
    uv: Floats = np.where(steep[:, None, None], wall, level)
    return uv


def quads(corners: ArrayLike, material: int, label: int, *, uv: ArrayLike | None = None) -> Mesh:
    """Quadrilaterals [Q, 4, 3], counter-clockwise seen from outside, as two triangles each; uv [Q, 4, 2]."""
    points = np.asarray(corners, dtype=np.float32).reshape(-1, 4, 3)
    order = np.array([[0, 1, 2], [0, 2, 3]])
    texture = None if uv is None else np.asarray(uv, dtype=np.float32).reshape(-1, 4, 2)[:, order].reshape(-1, 3, 2)
    return triangles(points[:, order].reshape(-1, 3, 3), material, label, uv=texture)


def box(size: ArrayLike, center: ArrayLike, material: int, label: int, taper: tuple[float, float] = (1.0, 1.0)) -> Mesh:
    """A box of `size` [3] about `center` [3]; the top is `taper` times as long and as wide as the bottom."""
    half = np.asarray(size, dtype=np.float64) / 2
    corner = _CORNERS * half
    corner[4:, :2] *= taper
    return quads((corner + np.asarray(center))[_FACES], material, label)


def loft(rings: ArrayLike, material: int, label: int, *, smooth: bool = True, closed: bool = True) -> Mesh:
    """The skin between M rings of K points, [M, K, 3], each counter-clockwise seen from the last towards the first.

    closed: whether the last point of a ring is joined to its first. smooth: normals averaged over neighbours.
    """
    points = np.asarray(rings, dtype=np.float64)
    if closed:
        points = np.concatenate([points, points[:, :1]], axis=1)  # [M, K + 1, 3]
    m, k = points.shape[:2]
    around = np.linalg.norm(np.diff(points, axis=1), axis=2).mean(axis=0)
    along = np.linalg.norm(np.diff(points, axis=0), axis=2).mean(axis=1)
    u, v = np.concatenate([[0], np.cumsum(around)]), np.concatenate([[0], np.cumsum(along)])
    grid = np.stack(np.broadcast_arrays(u[None, :], v[:, None]), axis=-1)  # [M, K + 1, 2]
    i, j = np.meshgrid(np.arange(m - 1), np.arange(k - 1), indexing="ij")
    index = np.stack([np.stack([i, i, i + 1, i + 1], -1), np.stack([j, j + 1, j + 1, j], -1)], -1).reshape(-1, 4, 2)
    mesh = quads(points[index[..., 0], index[..., 1]], material, label, uv=grid[index[..., 0], index[..., 1]])
    if not smooth:
        return mesh
    across, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
    if closed:
        across[:, 0] = across[:, -1] = points[:, 1] - points[:, -2]
    normal = np.cross(across, down)  # [M, K + 1, 3]
    length = np.sqrt((normal**2).sum(axis=-1, keepdims=True))
    order = np.array([[0, 1, 2], [0, 2, 3]])
    corner = index[:, order].reshape(-1, 3, 2)
    smooth_normals = (normal / np.maximum(length, 1e-9))[corner[..., 0], corner[..., 1]]  # [T, 3, 3]
    # Where a ring shrinks to a point its gradient vanishes: the flat normal stands in.
    unknown = (length < 1e-9)[corner[..., 0], corner[..., 1]]
    mesh = replace(mesh, normals=np.where(unknown, mesh.normals, smooth_normals).astype(np.float32))
    return _without_slivers(mesh)


def _without_slivers(mesh: Mesh) -> Mesh:
    """The triangles that have an area: those at a point to which a ring has shrunk have none."""
    edges = mesh.corners - np.roll(mesh.corners, 1, axis=1)
    kept = (np.abs(edges).max(axis=2) > 1e-6).all(axis=1)  # metres
    if kept.all():
        return mesh
    return Mesh(*(getattr(mesh, field)[kept] for field in _FIELDS))


def tube(path: ArrayLike, radii: ArrayLike, material: int, label: int, sides: int = 8, caps: bool = True) -> Mesh:
    """A round tube along points [M, 3] with radii [M] or one for all; capped with cones of no height."""
    line = np.asarray(path, dtype=np.float64)
    radius = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(line),))
    ahead = np.gradient(line, axis=0)
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-12)
    helper = np.where(np.abs(ahead[:1, 2:]) > 0.9, [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])  # one for all: no twist
    side = np.cross(ahead, helper)
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12)
    up = np.cross(ahead, side)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    circle = np.cos(angle)[None, :, None] * side[:, None] + np.sin(angle)[None, :, None] * up[:, None]
    rings = line[:, None] + circle * radius[:, None, None]  # [M, sides, 3]
    body = loft(rings, material, label)
    if not caps:
        return body
    return merge([body, fan(rings[0], material, label, flip=True), fan(rings[-1], material, label)])


def fan(ring: ArrayLike, material: int, label: int, flip: bool = False) -> Mesh:
    """The flat disc inside a ring [K, 3] around its middle; `flip` turns its face to the other side."""
    points = np.asarray(ring, dtype=np.float64)
    following = np.roll(points, -1, axis=0)
    middle = np.broadcast_to(points.mean(axis=0), points.shape)
    first, second = (following, points) if flip else (points, following)
    return triangles(np.stack([middle, first, second], axis=1), material, label)


def ellipsoid(radii: ArrayLike, center: ArrayLike, material: int, label: int, sides: int = 10, rings: int = 7) -> Mesh:
    """An ellipsoid of half-axes `radii` [3] about `center` [3]."""
    polar = np.linspace(-np.pi / 2, np.pi / 2, rings)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    unit = np.stack(
        np.broadcast_arrays(
            np.cos(polar)[:, None] * np.cos(angle), np.cos(polar)[:, None] * np.sin(angle), np.sin(polar)[:, None]
        ),
        axis=-1,
    )
    return loft(unit * np.asarray(radii) + np.asarray(center), material, label)


def extrude(
    outline: ArrayLike, stations: Sequence[tuple[float, float]], material: int, label: int, center: tuple[float, float]
) -> Mesh:
    """A side view [K, 2] (x, z; counter-clockwise seen from the right, that is from -y) swept across y.

    stations: (y, factor): at y the outline is shrunk by the factor about `center`, for rounded flanks; from the
    right (lowest y) to the left. The two flanks are closed.
    """
    shape = np.asarray(outline, dtype=np.float64)
    middle = np.asarray(center)
    rings = []
    for y, factor in stations:
        xz = middle + (shape - middle) * factor
        rings.append(np.column_stack([xz[:, 0], np.full(len(xz), y), xz[:, 1]]))
    skin = loft(np.stack(rings)[:, ::-1], material, label, smooth=False)
    ears = _ear_clip(shape)  # [K - 2, 3]
    right = triangles(rings[0][ears], material, label)
    left = triangles(rings[-1][ears[:, ::-1]], material, label)
    return merge([skin, right, left])


def _ear_clip(outline: Matrix) -> NDArray[np.intp]:
    """Triangles [K - 2, 3] (rows of corner numbers) that fill a simple counter-clockwise polygon [K, 2]."""

    def turn(a: Matrix, b: Matrix, c: Matrix) -> float:
        return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    left = list(range(len(outline)))
    found: list[tuple[int, int, int]] = []
    while len(left) > 3:
        for k in range(len(left)):
            i, j, n = left[k - 1], left[k], left[(k + 1) % len(left)]
            a, b, c = outline[i], outline[j], outline[n]
            if turn(a, b, c) <= 1e-12:
                continue
            others = (outline[p] for p in left if p not in (i, j, n))
            if any(turn(a, b, p) >= 0 and turn(b, c, p) >= 0 and turn(c, a, p) >= 0 for p in others):
                continue
            found.append((i, j, n))
            del left[k]
            break
        else:
            raise InputError("the outline crosses itself or goes clockwise: it has no inside")
    return np.array([*found, tuple(left)])
