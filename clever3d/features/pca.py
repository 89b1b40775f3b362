"""Features as colours: the first three principal components of their directions, scaled robustly to bright RGB.

Principal components as Pearson (1901): the eigenvectors of the covariance, here of the features at unit length, since
distillation by cosine gives meaning to directions and leaves lengths open. How they become colours (1st to 99th
percentile, saturation and brightness) is our choice, made for points on a dark background.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clever3d.errors import DataError, InputError
from clever3d.io import atomic_path

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    ArrayLike: TypeAlias = NDArray[Any] | torch.Tensor

INVALID_GREY = 90
_FORMAT = "clever3d.pca.v1"
FIT_CUBE = 0.5  # m; edge of the cubes of which each gives one point to a fit (our choice)
_ROWS_AT_ONCE = 16_384  # float64 copies of 120,000 x 768 features at once would take 700 MB


@dataclass(frozen=True)
class PCABasis:
    """Axes and colour range of features: fitted on one cloud, it gives the same meaning the same colour in others."""

    mean: NDArray[np.float64]  # [D]
    components: NDArray[np.float64]  # [3, D] unit rows, orthogonal; rows of zeros where D or the data give fewer
    low: NDArray[np.float64]  # [3] projection shown as 0
    high: NDArray[np.float64]  # [3] projection shown as 1; equal to low where nothing varies

    def project(self, features: ArrayLike) -> NDArray[np.float64]:
        """Coordinates in the basis: [N, D] -> [N, 3]. Raises InputError when D is not the basis' own."""
        array = _matrix(features)
        if array.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"features have {array.shape[1]} channels, the PCA basis was fitted on {self.mean.shape[0]}; "
                "fit a new one with fit_pca(features, valid)"
            )
        projected = np.empty((len(array), 3))
        for rows in _chunks(len(array)):
            with np.errstate(invalid="ignore"):
                projected[rows] = (_directions(array[rows]) - self.mean) @ self.components.T
        return projected

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file; the file appears whole or not at all."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("mean", "components", "low", "high")}
        with atomic_path(path) as draft:
            save_file(tensors, draft, metadata={"format": _FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> PCABasis:
        """Reads what ``save`` wrote. Raises DataError for a missing file or one that holds something else."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot read the PCA basis {path}: {error}; write one with PCABasis.save") from error
        if set(tensors) != {"mean", "components", "low", "high"} or tensors["components"].shape[:1] != (3,):
            raise DataError(f"{path} is not a PCA basis: it holds {sorted(tensors)}; write one with PCABasis.save")
        return cls(**tensors)


def fit_pca(
    features: ArrayLike,
    valid: ArrayLike | None = None,
    *,
    quantiles: tuple[float, float] = (0.01, 0.99),
) -> PCABasis:
    """Fits the first three principal components of the features' directions, and their range between two quantiles.

    Args:
        features: [N, D], array or tensor. Rows with non-finite values are left out.
        valid: [N] bool; rows that are not valid are left out.
        quantiles: the projections shown as 0 and as 1; what lies outside is clipped.

    The sign of a component is free in PCA; here its entry of largest magnitude is positive, so a fit is repeatable.
    With fewer than two usable rows, or features that do not vary, the components are zero and every colour is neutral.

    Raises:
        InputError: features not [N, D], valid not [N], or quantiles not increasing within [0, 1].
    """
    if not 0.0 <= quantiles[0] < quantiles[1] <= 1.0:
        raise InputError(f"quantiles must increase within [0, 1], got {quantiles}; the default is (0.01, 0.99)")
    array = _matrix(features)
    rows = np.flatnonzero(_usable(array, valid))
    mean, covariance = _moments(array, rows)
    components = _leading_components(covariance, trace_scale=float(mean @ mean))
    basis = PCABasis(mean, components, np.zeros(3), np.zeros(3))
    if not rows.size:
        return basis
    low, high = np.quantile(basis.project(array[rows]), quantiles, axis=0)
    return PCABasis(mean, components, low, high)


def pca_colors(
    features: ArrayLike,
    valid: ArrayLike | None = None,
    *,
    xyz: ArrayLike | None = None,
    basis: PCABasis | None = None,
) -> NDArray[np.uint8]:
    """Colours points by the first three principal components of their features.

    Args:
        features: [N, D], array or tensor.
        valid: [N] bool; the others, and rows with non-finite values, become grey (90, 90, 90).
        xyz: [N, 3] metres. Spreads the fit evenly in space, one point in each cube of 0.5 m: without it the dense road
            around the sensor decides the colours.
        basis: colours of an earlier fit, to compare clouds; ``None`` fits on these features.

    Returns:
        uint8 [N, 3] RGB.

    Raises:
        InputError: shapes that do not fit each other or the basis.
    """
    array = _matrix(features)
    usable = _usable(array, valid)
    if basis is None:
        basis = fit_pca(array, usable if xyz is None else usable & _one_in_each_cube(_numpy(xyz), usable))
    colors = np.full((len(array), 3), INVALID_GREY, dtype=np.uint8)
    if not usable.any():
        return colors
    span = basis.high - basis.low
    shifted = basis.project(array[usable]) - basis.low
    # A component that does not vary says nothing: the middle of its scale.
    unit = np.divide(shifted, span, out=np.full_like(shifted, 0.5), where=span > 0)
    colors[usable] = _vivid(np.clip(unit, 0.0, 1.0))
    return colors


def _vivid(unit: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[M, 3] in [0, 1] -> uint8 RGB: more saturated, and never dark, for points on a dark background."""
    brightest = unit.max(axis=1, keepdims=True)
    pushed = brightest - 1.3 * (brightest - unit)  # away from grey
    pushed = np.clip(pushed, 0.0, 1.0)
    brightness = 0.68 + 0.32 * brightest
    scaled = np.divide(pushed, brightest, out=np.full_like(unit, 0.5), where=brightest > 0) * brightness
    rgb: NDArray[np.uint8] = np.rint(255 * np.clip(0.06 + 0.94 * scaled, 0.0, 1.0)).astype(np.uint8)
    return rgb


def _directions(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows [M, D] at unit length, float64; rows of zeros stay zero."""
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit


def _one_in_each_cube(xyz: NDArray[Any], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] bool: of the usable points in each cube, the first one by coordinates, whatever the order of the points."""
    if xyz.shape != (len(usable), 3):
        raise InputError(f"xyz must be [{len(usable)}, 3] to go with the features, got {list(xyz.shape)}")
    rows = np.flatnonzero(usable)
    points = xyz[rows]
    cube = np.floor(points / FIT_CUBE)
    order = np.lexsort((*points.T, *cube.T))
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (cube[order][1:] != cube[order][:-1]).any(axis=1)
    chosen = np.zeros(len(usable), dtype=bool)
    chosen[rows[order[first]]] = True
    return chosen


def _moments(array: NDArray[Any], rows: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and covariance [D, D] of the rows' directions, in float64, in two passes."""
    dim = array.shape[1]
    mean, covariance = np.zeros(dim), np.zeros((dim, dim))
    if not rows.size:
        return mean, covariance
    for part in _chunks(rows.size):
        mean += _directions(array[rows[part]]).sum(axis=0)
    mean /= rows.size
    for part in _chunks(rows.size):
        centred = _directions(array[rows[part]]) - mean
        covariance += centred.T @ centred
    return mean, covariance / rows.size


def _leading_components(covariance: NDArray[np.float64], trace_scale: float) -> NDArray[np.float64]:
    """The three leading eigenvectors as rows [3, D], largest first, sign fixed; zeros beyond the rank."""
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")[:3]
    components = np.zeros((3, len(covariance)))
    # Below this a variance is rounding: of the largest variance, or of the mean's square when nothing varies.
    threshold = 1e-12 * max(float(variances.max(initial=0.0)), trace_scale)
    for row, column in enumerate(order):
        if variances[column] > threshold:
            vector = vectors[:, column]
            components[row] = vector * np.sign(vector[np.argmax(np.abs(vector))])
    return components


def _matrix(features: ArrayLike) -> NDArray[Any]:
    array = _numpy(features)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"features must be [N, D], got {list(array.shape)}")
    return array


def _usable(array: NDArray[Any], valid: ArrayLike | None) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.isfinite(array).all(axis=1)
    if valid is None:
        return finite
    mask: NDArray[np.bool_] = _numpy(valid).astype(bool)
    if mask.shape != (len(array),):
        raise InputError(
            f"valid must be [{len(array)}] to go with features {list(array.shape)}, got {list(mask.shape)}"
        )
    usable: NDArray[np.bool_] = finite & mask
    return usable


def _numpy(values: ArrayLike) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    import torch

    if isinstance(values, torch.Tensor):
        values = values.detach()
        # numpy has no bfloat16
        values = values.float() if values.is_floating_point() and values.dtype != torch.float64 else values
        array: NDArray[Any] = values.cpu().numpy()
        return array
    return np.asarray(values)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, count, _ROWS_AT_ONCE)]
