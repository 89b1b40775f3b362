"""Rotations and rigid transforms, checked where they enter: a matrix that is no rotation is an error with its place."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clever3d.errors import DataError

Matrix: TypeAlias = NDArray[np.float64]

#: How far R R^T may be from the identity, and det R from 1. Calibrations are often written with 6 digits, which costs
#: 1e-6; a wrong or a scaled matrix is off by far more (our choice).
ROTATION_TOLERANCE = 1e-3
#: How far the length of a quaternion may be from 1. Three digits cost 1e-3, a lost digit far more (our choice).
QUATERNION_TOLERANCE = 1e-2


def rigid(rotation: ArrayLike, translation: ArrayLike) -> Matrix:
    """The 4x4 matrix [R t; 0 1] of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def inverse(transform: Matrix) -> Matrix:
    """The inverse [4, 4] of a rigid transform [4, 4]: [R^T, -R^T t; 0 1]."""
    rotation = transform[:3, :3].T
    return rigid(rotation, -rotation @ transform[:3, 3])


def apply(transform: Matrix, xyz: NDArray[np.floating]) -> Matrix:
    """Points [N, 3] moved by a transform [4, 4], in float64: [N, 3]."""
    moved: Matrix = xyz.astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]
    return moved


def quaternion_to_rotation(quaternion: ArrayLike, where: str) -> Matrix:
    """The rotation [3, 3] of a quaternion (w, x, y, z), whose rounding errors are normalised away.

    Raises DataError, beginning with `where` (file and field), unless it is four finite numbers of length one.
    """
    q = _numbers(quaternion, (4,), where)
    norm = float(np.linalg.norm(q))
    if abs(norm - 1) > QUATERNION_TOLERANCE:
        wrong = "is zero" if norm < 1e-6 else f"has the length {norm:.4g}, not 1"
        raise DataError(f"{where}: the quaternion {q.tolist()} {wrong}, so it is no rotation; give (w, x, y, z)")
    return unit_quaternions_to_rotations(q / norm)


def unit_quaternions_to_rotations(quaternions: Matrix) -> Matrix:
    """The rotations [..., 3, 3] of quaternions [..., 4] (w, x, y, z) of length one, which is not checked.

    Source: the Euler-Rodrigues formula.
    """
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, axis=-1).reshape(*quaternions.shape[:-1], 3, 3)


def rotation_to_quaternion(rotation: Matrix) -> Matrix:
    """The unit quaternion (w, x, y, z), w >= 0, of a rotation [3, 3].

    Source: Bar-Itzhack, "New method for extracting the quaternion from a rotation matrix" (2000): the eigenvector of
    the largest eigenvalue, exact for every rotation and the nearest one for a matrix with rounding errors.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(k / 3)[1][:, -1]  # eigh reads the lower triangle
    quaternion: Matrix = np.array([w, x, y, z])
    return -quaternion if w < 0 else quaternion


def rotation_about_z(yaw: float) -> Matrix:
    """The rotation [3, 3] by `yaw` radians about z, counter-clockwise seen from above."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def check_rotation(matrix: ArrayLike, where: str) -> Matrix:
    """`matrix` as float64 [3, 3] if it is a rotation.

    Raises DataError, beginning with `where` (file and field), that says whether it is mirrored, scaled or skewed.
    """
    rotation = _numbers(matrix, (3, 3), where)
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    determinant = float(np.linalg.det(rotation))
    if error <= ROTATION_TOLERANCE and determinant > 0:
        return rotation
    if error <= ROTATION_TOLERANCE:
        wrong = "is a mirror image: two axes are swapped, or one has the wrong sign"
    elif np.abs(rotation @ rotation.T - np.cbrt(determinant) ** 2 * np.eye(3)).max() <= ROTATION_TOLERANCE:
        wrong = f"is a rotation times {np.cbrt(determinant):.4g}: take the scale out"
    else:
        wrong = "is not orthogonal (R R^T differs from the identity by " + f"{error:.3g}): check its numbers"
    raise DataError(f"{where}: determinant {determinant:.4g}; this is no rotation, it {wrong}")


def check_transform(matrix: ArrayLike, where: str) -> Matrix:
    """`matrix` as float64 [4, 4] if it is rigid: a rotation, a finite translation, last row (0, 0, 0, 1).

    Raises DataError, beginning with `where` (file and field).
    """
    transform = _numbers(matrix, (4, 4), where)
    check_rotation(transform[:3, :3], where)
    if not np.allclose(transform[3], (0, 0, 0, 1), atol=1e-9):
        hint = "; it looks transposed (columns first)" if np.allclose(transform[:3, 3], 0) else ""
        raise DataError(f"{where}: the last row is {transform[3].tolist()}, not 0 0 0 1{hint}")
    return transform


def _numbers(values: ArrayLike, shape: tuple[int, ...], where: str) -> Matrix:
    size = " x ".join(map(str, shape))
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {values!r} is not {size} numbers") from error
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise DataError(f"{where}: expected {size} finite numbers, got shape {numbers.shape}: {numbers.tolist()}")
    return numbers
