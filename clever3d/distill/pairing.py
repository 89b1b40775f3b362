"""Which point is seen at which pixel, and what the teacher says there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clever3d.datasets import Camera, Frame
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.teachers import sample_grid
from clever3d.errors import DataError

#: Nearest depth at which a point is paired (ScaLR).
MIN_DEPTH = 1.0
#: Points this share of the image's width beyond its left and right edges still enter the student, as context.
CONTEXT = 0.1


@dataclass(frozen=True)
class View:
    """Which points of a scan a camera sees. Occlusion is not tested (as ScaLR).

    Attributes:
        rows: int64 ``[M]``, the points that fall into the image, more than ``MIN_DEPTH`` ahead.
        pixels: float64 ``[M, 2]``, (u, v) of these points.
        context: bool ``[N]``, points in front of the camera whose column is in the image or a little beyond, whatever
            their height: what a student needs around the paired points.
        image_size: (W, H).
    """

    rows: np.ndarray
    pixels: np.ndarray
    context: np.ndarray
    image_size: tuple[int, int]


def view(xyz: np.ndarray, camera: Camera, *, below: float = 0.0) -> View:
    """Projects points ``[N, 3]`` into a camera's image.

    Args:
        below: points that fall under the image by at most this share of its height count as seen at its lower edge.

    Raises:
        DataError: the image cannot be opened.
    """
    try:
        with Image.open(camera.image_path) as image:
            width, height = image.size
    except OSError as error:
        raise DataError(f"the image {camera.image_path} cannot be opened ({error})") from error
    pixels, depth = camera.project(xyz)
    u, v = pixels[:, 0], pixels[:, 1]
    lowest = (1 + below) * height - 0.5
    seen = (depth > MIN_DEPTH) & (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < lowest)
    margin = CONTEXT * width
    context = (depth > 0) & (u >= -margin) & (u < width + margin)
    rows = np.flatnonzero(seen)
    return View(rows, pixels[rows], context, (width, height))


@dataclass(frozen=True)
class PairedScan:
    """A scan cut to what its cameras see, with the teacher's features.

    Attributes:
        xyz: ``[N, 3]`` float32, metres, FLU.
        intensity: ``[N]`` in [0, 1] or None.
        rows: int64 ``[M]``, the paired points (a point seen by two cameras occurs twice).
        targets: ``[M, C]`` float32 teacher features.
    """

    xyz: Tensor
    intensity: Tensor | None
    rows: Tensor
    targets: Tensor


def pair(frame: Frame, cache: FeatureCache, *, below: float = 0.0) -> PairedScan:
    """Pairs all cameras of a frame with its points; ``below`` as in :func:`view`.

    Raises:
        DataError: unreadable points or images, or a calibration that puts no point into any image.
    """
    cloud = frame.points()
    # as check_points: not finite, or (0, 0, 0) for a ray without return
    returned = np.isfinite(cloud.xyz).all(axis=1) & (cloud.xyz != 0).any(axis=1)
    xyz = cloud.xyz[returned]
    views = [view(xyz, camera, below=below) for camera in frame.cameras]
    if not sum(len(v.rows) for v in views):
        raise DataError(
            f"{frame.points_path}: no point falls into any image of frame {frame.id}; "
            "check that the calibration belongs to this frame and maps points to camera, not the reverse"
        )
    kept = np.logical_or.reduce([v.context for v in views])
    new_row = np.cumsum(kept) - 1
    rows = [torch.from_numpy(new_row[v.rows]) for v in views]
    targets = [
        sample_grid(cache.get(camera.image_path), v.pixels, v.image_size)
        for camera, v in zip(frame.cameras, views, strict=True)
    ]
    intensity = None if cloud.intensity is None else torch.from_numpy(cloud.intensity[returned][kept])
    return PairedScan(torch.from_numpy(xyz[kept]), intensity, torch.cat(rows), torch.cat(targets))
