"""A calibrated camera: from points to pixels and from pixels back to rays, with and without lens distortion.

Pixels are (u right, v down), whole numbers at pixel centres, as in OpenCV and KITTI: an image of W x H pixels spans
[-0.5, W - 0.5] x [-0.5, H - 0.5]. Camera axes are x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix, apply
from clever3d.errors import InputError

LensModel = Literal["pinhole", "fisheye"]

_COUNTS: dict[str, tuple[int, ...]] = {"pinhole": (4, 5, 8), "fisheye": (4,)}


@dataclass(frozen=True)
class Distortion:
    """Lens distortion in OpenCV's order of coefficients.

    model: ``pinhole``, Brown-Conrady: (k1, k2, p1, p2[, k3[, k4, k5, k6]]), the last three a rational denominator;
    ``fisheye``, Kannala-Brandt: (k1, k2, k3, k4), theta_d = theta (1 + k1 theta^2 + k2 theta^4 + ...).
    Source of both: OpenCV's calib3d documentation ("pinhole" and "fisheye" camera models).

    Raises InputError for an unknown model or a number of coefficients that the model does not have.
    """

    model: LensModel
    coefficients: tuple[float, ...]
    limit: float = field(init=False)
    """Largest undistorted radius (pinhole: tan of the angle from the axis; fisheye: the angle) up to which the radial
    function grows. Beyond it the polynomial turns back, and points far outside would land inside the image."""

    def __post_init__(self) -> None:
        if self.model not in get_args(LensModel):
            raise InputError(f"lens model {self.model!r}: choose one of {', '.join(get_args(LensModel))}")
        if len(self.coefficients) not in _COUNTS[self.model] or not np.isfinite(self.coefficients).all():
            counts = " or ".join(map(str, _COUNTS[self.model]))
            raise InputError(f"{self.model} distortion takes {counts} finite coefficients, got {self.coefficients}")
        object.__setattr__(self, "limit", self._turning_point())

    def _radial(self) -> tuple[Matrix, Matrix]:
        """Numerator and denominator of distorted / undistorted radius: coefficients of powers of r^2, ascending."""
        k = self.coefficients
        if self.model == "fisheye":
            return np.array([1.0, *k]), np.ones(1)
        k = k + (0.0,) * (8 - len(k))
        return np.array([1.0, k[0], k[1], k[4]]), np.array([1.0, k[5], k[6], k[7]])

    def _turning_point(self) -> float:
        """Smallest r > 0 where d/dr [r N(r^2) / D(r^2)] = 0; infinite where there is none."""
        top, bottom = self._radial()
        # With s = r^2 the derivative's numerator is (N + 2 s N') D - 2 s N D'.
        two_s = np.array([0.0, 2.0])
        slope = polynomial.polysub(
            polynomial.polymul(polynomial.polyadd(top, polynomial.polymul(two_s, polynomial.polyder(top))), bottom),
            polynomial.polymul(polynomial.polymul(two_s, top), polynomial.polyder(bottom)),
        )
        # Below 1e-15 a coefficient moves no point that a lens can see, but may overflow in the search for roots.
        kept = [np.trim_zeros(np.where(np.abs(p) < 1e-15, 0, p), "b") for p in (slope, bottom)]
        roots = np.concatenate([polynomial.polyroots(p) for p in kept])
        real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
        largest = np.pi / 2 if self.model == "fisheye" else np.inf  # points have to lie in front of the camera
        return min(float(np.sqrt(real.min())), largest) if len(real) else float(largest)

    def distort(self, xy: Matrix) -> Matrix:
        """Where the lens puts the ideal image points (x/z, y/z) [N, 2]; rows beyond ``limit`` are NaN."""
        top, bottom = self._radial()
        radius = np.hypot(xy[:, 0], xy[:, 1])  # [N]
        r = np.arctan(radius) if self.model == "fisheye" else radius
        s = np.where(r < self.limit, r, np.nan) ** 2
        factor = polynomial.polyval(s, top) / polynomial.polyval(s, bottom)  # [N] distorted radius / r
        if self.model == "fisheye":
            turned: Matrix = xy * (factor * np.where(radius > 1e-12, r / np.maximum(radius, 1e-12), 1.0))[:, None]
            return turned
        p1, p2 = self.coefficients[2:4]
        x, y = xy.T
        tangential = np.stack([2 * p1 * x * y + p2 * (s + 2 * x * x), p1 * (s + 2 * y * y) + 2 * p2 * x * y], axis=1)
        moved: Matrix = xy * factor[:, None] + tangential
        return moved

    def undistort(self, xy: Matrix, iterations: int = 20) -> Matrix:
        """The inverse of `distort` by Newton's method: ideal points [N, 2], NaN where there is none within 1e-8."""
        guess = np.clip(xy, -0.99 * min(self.limit, 10.0), 0.99 * min(self.limit, 10.0))
        step = 1e-6
        for _ in range(iterations):
            value = self.distort(guess)
            dx = (self.distort(guess + np.array([step, 0])) - value) / step  # [N, 2], a column of the Jacobian
            dy = (self.distort(guess + np.array([0, step])) - value) / step
            error = xy - value
            determinant = dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0]
            move = np.stack(
                [error[:, 0] * dy[:, 1] - error[:, 1] * dy[:, 0], error[:, 1] * dx[:, 0] - error[:, 0] * dx[:, 1]],
                axis=1,
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                move = move / determinant[:, None]
            # Half the radius at most: a full step may jump over the turning point, where there is no way back.
            longest = 0.5 * np.hypot(*guess.T) + 0.1
            length = np.maximum(np.hypot(*move.T), 1e-300)
            guess = guess + move * np.minimum(1.0, longest / length)[:, None]
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(self.distort(guess) - xy).max(axis=1) < 1e-8)
        guess[wrong] = np.nan
        return guess


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera of one frame.

    intrinsics [3, 3]: float64, in pixels of the image file, last row (0, 0, 1).
    points_to_camera [4, 4]: float64, from the frame's points (FLU, metres) to camera axes (x right, y down, z forward,
    metres). It already holds the sensor's motion between the two timestamps where the data set knows it.
    distortion: None where the images are rectified.
    image_size: (W, H) in pixels as the calibration has it, None where it does not say. The file itself may differ.
    timestamp: seconds, on the clock of the frame's own; None where the data set does not say.
    """

    name: str
    image_path: Path
    intrinsics: Matrix
    points_to_camera: Matrix
    distortion: Distortion | None = None
    image_size: tuple[int, int] | None = None
    timestamp: float | None = None

    def project(self, xyz: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
        """Pixels [N, 2] (u right, v down, float64) and depths [N] (metres along the axis) of points [N, 3].

        A point with depth <= 0 is behind the camera and has no pixel, nor has one so far off the axis that the
        distortion model does not hold there: its row is NaN, which fails every comparison. Pixels are not clipped to
        the image: the caller knows its size.

        Raises InputError if `xyz` is not [N, 3].
        """
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise InputError(f"xyz has shape {tuple(xyz.shape)}; pass [N, 3], metres, in the frame's axes")
        camera = apply(self.points_to_camera, xyz)  # [N, 3]
        depth = camera[:, 2]  # [N]
        pixels = np.full((len(xyz), 2), np.nan)
        ahead = depth > 0
        ideal = camera[ahead, :2] / depth[ahead, None]
        if self.distortion is not None:
            ideal = self.distortion.distort(ideal)
        pixels[ahead] = ideal @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]
        return pixels, depth

    def rays(self, pixels: NDArray[np.floating]) -> Matrix:
        """Unit directions [M, 3] in camera axes of what is seen at pixels [M, 2]; NaN where no ray gets there."""
        shifted = pixels.astype(np.float64) - self.intrinsics[:2, 2]
        ideal = np.linalg.solve(self.intrinsics[:2, :2], shifted.T).T  # [M, 2]
        if self.distortion is not None:
            ideal = self.distortion.undistort(ideal)
        directions = np.column_stack([ideal, np.ones(len(ideal))])
        unit: Matrix = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        return unit
