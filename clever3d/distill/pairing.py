"""Which point is seen at which pixel, and what the teacher says there.

Pixels are whole numbers at pixel centres: an image of W x H pixels spans [-0.5, W - 0.5] x [-0.5, H - 0.5], and a
teacher's grid of w x h patches spans the same, patch j being centred at (j + 0.5) W / w - 0.5. A feature at a pixel is
bilinear between the centres of the four patches around it (`sample_grid`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clever3d.datasets import Camera, Frame
from clever3d.datasets.geometry import Matrix
from clever3d.datasets.occlusion import OcclusionConfig, hidden
from clever3d.datasets.sample import Pairs, Sample, sample_from_frame
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.teachers import sample_grid
from clever3d.errors import DataError, InputError

#: Nearest depth at which a point is paired (ScaLR).
MIN_DEPTH = 1.0
#: Points this share of the image's width beyond its left and right edges still enter the student, as context.
CONTEXT = 0.1

WhichCameras = Literal["all", "one"]


@dataclass(frozen=True)
class View:
    """Which points of a scan a camera sees.

    Attributes:
        rows: int64 ``[M]``, the points that fall into the image, more than ``MIN_DEPTH`` ahead.
        pixels: float64 ``[M, 2]``, (u, v) of these points in the image file.
        context: bool ``[N]``, points in front of the camera whose column is in the image or a little beyond, whatever
            their height: what a student needs around the paired points.
        image_size: (W, H) of the image file.
        behind_others: points that would be in ``rows`` but for the occlusion test.
    """

    rows: NDArray[np.int64]
    pixels: Matrix
    context: NDArray[np.bool_]
    image_size: tuple[int, int]
    behind_others: int = 0


def view(
    xyz: NDArray[np.floating], camera: Camera, *, below: float = 0.0, occlusion: OcclusionConfig | None = None
) -> View:
    """Projects points ``[N, 3]`` into a camera's image.

    Args:
        below: points that fall under the image by at most this share of its height count as seen at its lower edge.
        occlusion: leaves out the points that are hidden behind others; None does not look (as ScaLR).

    Raises:
        DataError: the image cannot be opened, or does not have the size that the camera was calibrated at.
    """
    width, height = image_size(camera.image_path)
    camera = fit_to_image(camera, (width, height))
    margin = max(CONTEXT * width, 0.5)  # whatever is paired is context
    near = _near_columns(xyz, camera, -margin, width + margin)
    pixels, depth = camera.project(xyz[near])
    u, v = pixels[:, 0], pixels[:, 1]
    lowest = (1 + below) * height - 0.5
    seen = np.flatnonzero((depth > MIN_DEPTH) & (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < lowest))
    context = np.zeros(len(xyz), dtype=bool)
    context[near] = (depth > 0) & (u >= -margin) & (u < width + margin)
    found = len(seen)
    if occlusion is not None:
        seen = seen[~hidden(pixels[seen], depth[seen], camera, occlusion)]
    return View(near[seen], pixels[seen], context, (width, height), found - len(seen))


def _near_columns(xyz: NDArray[np.floating], camera: Camera, left: float, right: float) -> NDArray[np.intp]:
    """Numbers of the points ahead whose u can be in [left, right], decided in the points' own precision and with room
    for its rounding: only these are worth projecting exactly. A lens moves pixels, so there depth alone decides."""
    rows = (camera.intrinsics @ camera.points_to_camera[:3])[[0, 2]]  # u * depth, and depth, as [x, y, z, 1] times it
    (across, across_shift), (forward, forward_shift) = ((row[:3].astype(xyz.dtype), row[3]) for row in rows)
    depth = xyz @ forward + forward_shift.astype(xyz.dtype)
    near: NDArray[np.bool_] = depth > -0.01
    if camera.distortion is None:
        u_depth = xyz @ across + across_shift.astype(xyz.dtype)
        near &= u_depth - (left - 1) * depth > -1
        near &= u_depth - (right + 1) * depth < 1
    return np.flatnonzero(near)


def image_size(path: Path) -> tuple[int, int]:
    """(W, H) of an image file, from its header. Raises DataError for a file that is missing, empty or no image."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return width, height
    except FileNotFoundError as error:
        raise DataError(f"the image {path} does not exist; the download is incomplete") from error
    except (OSError, Image.DecompressionBombError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        what = "is empty (0 bytes); download it again" if empty else f"cannot be opened ({error})"
        raise DataError(f"the image {path} {what}") from error


def fit_to_image(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera whose pixels are those of an image file of `size` (W, H).

    A copy that was made smaller by the same factor along both sides is understood: pixel edges, not centres, scale, so
    u becomes (u + 0.5) f - 0.5. Any other difference means that the calibration belongs to other images.

    Raises:
        DataError: names both sizes.
    """
    calibrated = camera.image_size
    if calibrated is None or calibrated == size:
        return camera
    if not (size[0] < calibrated[0] and size[0] * calibrated[1] == size[1] * calibrated[0]):
        raise DataError(
            f"the image {camera.image_path} has {size[0]} x {size[1]} pixels, but camera {camera.name} was calibrated "
            f"at {calibrated[0]} x {calibrated[1]} (image_size): use the images that the calibration belongs to, or "
            "copies made smaller by one factor along both sides"
        )
    factor = size[0] / calibrated[0]
    resize = np.array([[factor, 0, factor / 2 - 0.5], [0, factor, factor / 2 - 0.5], [0, 0, 1]])
    return replace(camera, intrinsics=resize @ camera.intrinsics, image_size=size)


def pair(
    frame: Frame,
    cache: FeatureCache,
    *,
    below: float = 0.0,
    which: WhichCameras = "all",
    occlusion: OcclusionConfig | None = None,
    generator: torch.Generator | None = None,
) -> Sample:
    """A scan cut to what its cameras see, with the teacher's features in ``pairs.targets``: :func:`find_pairs` of a
    frame's points without labels and boxes, then :func:`add_targets`.

    Raises:
        DataError: unreadable points or images, no cameras, or a calibration that puts no point into any image.
    """
    sample = sample_from_frame(frame, labels=False, boxes=False)
    return add_targets(find_pairs(sample, below=below, which=which, occlusion=occlusion, generator=generator), cache)


def find_pairs(
    sample: Sample,
    *,
    below: float = 0.0,
    which: WhichCameras = "all",
    occlusion: OcclusionConfig | None = None,
    generator: torch.Generator | None = None,
) -> Sample:
    """The sample cut to the context of its cameras, with pairs but without targets.

    Args:
        below, occlusion: as in :func:`view`.
        which: ``all`` cameras, or ``one`` at random among those that see a point: a sixth of the work on nuScenes
            (ScaLR). The sample keeps the cameras used, and the scan is cut to what they see.
        generator: draws the one camera.

    Raises:
        DataError: no cameras, unreadable images, or a calibration that puts no point into any image.
        InputError: one camera without a generator to draw it.
    """
    cameras = sample.cameras
    if not cameras:
        raise DataError(
            f"frame {sample.name} has no cameras, and without an image there is nothing to learn from a teacher: "
            "download the images of the data set, or leave the frame out"
        )
    xyz = sample.xyz.numpy()
    if which == "one":
        if generator is None:
            raise InputError("which='one' draws a camera: pass the generator that draws it")
        used, views = _one_view(xyz, cameras, torch.randperm(len(cameras), generator=generator), below, occlusion)
    else:
        used, views = cameras, [view(xyz, camera, below=below, occlusion=occlusion) for camera in cameras]
    if not any(len(v.rows) for v in views):
        raise DataError(
            f"no point falls into any image of frame {sample.name} ({', '.join(str(c.image_path) for c in used)}); "
            "check that the calibration belongs to this frame and maps points to camera, not the reverse"
        )
    pairs = Pairs(
        rows=torch.from_numpy(np.concatenate([v.rows for v in views])),
        cameras=torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(v.rows) for v in views])),
        pixels=torch.from_numpy(np.concatenate([v.pixels for v in views]).astype(np.float32)),
    )
    fitted = tuple(fit_to_image(camera, v.image_size) for camera, v in zip(used, views, strict=True))
    fitted = tuple(replace(camera, image_size=v.image_size) for camera, v in zip(fitted, views, strict=True))
    context = np.logical_or.reduce([v.context for v in views])
    return replace(sample, pairs=pairs, cameras=fitted).select(torch.from_numpy(context))


def add_targets(sample: Sample, cache: FeatureCache) -> Sample:
    """The sample with the teacher's features at its pairs' pixels.

    Features are most of what a batch weighs: thin out points and draw pairs first, for pixels stay as they are.

    Raises:
        DataError: an image that cannot be read; InputError: a sample that :func:`find_pairs` has not seen.
    """
    pairs = sample.pairs
    if pairs is None or any(camera.image_size is None for camera in sample.cameras):
        raise InputError(f"sample {sample.name} has no pairs: find_pairs makes them")
    counts = torch.bincount(pairs.cameras, minlength=len(sample.cameras)).tolist()
    if not bool((pairs.cameras.diff() >= 0).all()):
        raise InputError(f"sample {sample.name}: pairs must come camera by camera, as find_pairs makes them")
    targets = [
        sample_grid(cache.get(camera.image_path), pixels, camera.image_size)
        for camera, pixels in zip(sample.cameras, pairs.pixels.split(counts), strict=True)
        if camera.image_size is not None and (len(pixels) or not len(pairs))  # without pairs, for the width
    ]
    joined = targets[0] if len(targets) == 1 else torch.cat(targets)
    return replace(sample, pairs=replace(pairs, targets=joined))


def paired_targets(sample: Sample) -> tuple[Tensor, Tensor]:
    """The paired rows int64 ``[M]`` of a sample that :func:`pair` made, and the teacher's features ``[M, C]`` there."""
    if sample.pairs is None or sample.pairs.targets is None:
        raise InputError(f"sample {sample.name} has no pairs with targets: add_targets makes them")
    return sample.pairs.rows, sample.pairs.targets


def _one_view(
    xyz: NDArray[np.floating],
    cameras: tuple[Camera, ...],
    order: Tensor,
    below: float,
    occlusion: OcclusionConfig | None,
) -> tuple[tuple[Camera, ...], list[View]]:
    """The first camera in `order` that sees a point, and its view; the last one where none does."""
    for number in order.tolist():
        seen = view(xyz, cameras[number], below=below, occlusion=occlusion)
        if len(seen.rows):
            break
    return (cameras[number],), [seen]
