"""Pictures to look at: points on the image, coloured by depth, and the score over shifts. Drawn with Pillow alone."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clever3d.datasets.base import Frame
from clever3d.datasets.camera import Camera
from clever3d.errors import DataError
from clever3d.evaluate.calibration.check import CameraResult
from clever3d.evaluate.calibration.edges import Array
from clever3d.evaluate.calibration.survey import usable
from clever3d.io import atomic_path

_WIDTH = 1600  # pixels of a picture, whatever the image's
_DEPTHS = (2.0, 60.0)  # metres: red to violet, logarithmic
_BAR = 46  # pixels of the legend's height
_CELL = 12  # pixels of a square of the score picture


def save_overlay(path: Path, frame: Frame, camera: Camera, title: str) -> int:
    """Draws the points of a frame on its image, near ones red, far ones violet; gives how many are in view.

    The image is darkened so that thin dots show. Raises DataError if points or image cannot be read.
    """
    xyz, _ = usable(frame)
    try:
        with Image.open(camera.image_path) as image:
            size = image.size
            factor = _WIDTH / size[0]
            picture = image.convert("RGB").resize((_WIDTH, round(size[1] * factor)), Image.Resampling.LANCZOS)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{camera.image_path} cannot be read as an image ({error})") from error
    canvas = (np.asarray(picture, dtype=np.float32) * 0.55).astype(np.uint8)
    pixels, depth = camera.project(xyz)
    # What the calibration's image size means, if the files' differ, is for the report: here the file counts.
    places = (pixels + 0.5) * factor
    with np.errstate(invalid="ignore"):
        seen = (depth > 0.5) & (places >= 0).all(axis=1) & (places < np.array(picture.size)).all(axis=1)
    rows = np.flatnonzero(seen)
    rows = rows[np.argsort(-depth[rows])]  # near ones over far ones
    _dots(canvas, places[rows].astype(np.intp), _colors(depth[rows]))
    framed = Image.new("RGB", (_WIDTH, picture.size[1] + _BAR), (12, 13, 16))
    framed.paste(Image.fromarray(canvas), (0, 0))
    _legend(framed, picture.size[1], f"{title}: {len(rows):,} points in view")
    with atomic_path(path) as draft:
        framed.save(draft, format="PNG")
    return len(rows)


def _dots(canvas: NDArray[np.uint8], places: NDArray[np.intp], colors: NDArray[np.uint8]) -> None:
    """Squares of 3 x 3 pixels."""
    height, width = canvas.shape[:2]
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            x = np.clip(places[:, 0] + right, 0, width - 1)
            y = np.clip(places[:, 1] + down, 0, height - 1)
            canvas[y, x] = colors


def _colors(depth: Array) -> NDArray[np.uint8]:
    """Colours [M, 3] of depths [M]."""
    near, far = np.log(_DEPTHS)
    share = np.clip((np.log(np.maximum(depth, 0.1)) - near) / (far - near), 0, 1)
    table = np.array([colorsys.hsv_to_rgb(0.78 * k / 255, 0.95, 1.0) for k in range(256)])
    colors: NDArray[np.uint8] = (table[(share * 255).astype(np.intp)] * 255).astype(np.uint8)
    return colors


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has its one small font only
        return ImageFont.load_default()


def _legend(picture: Image.Image, top: int, text: str) -> None:
    draw = ImageDraw.Draw(picture)
    draw.text((14, top + 10), text, fill=(235, 235, 235), font=_font(22))
    left, width = _WIDTH - 520, 380
    ramp = np.geomspace(*_DEPTHS, width)
    for step, color in enumerate(_colors(ramp)):
        draw.line([(left + step, top + 8), (left + step, top + 20)], fill=tuple(int(c) for c in color))
    for metres in (2, 5, 10, 20, 40):
        place = left + width * np.log(metres / _DEPTHS[0]) / np.log(_DEPTHS[1] / _DEPTHS[0])
        draw.text((place - 6, top + 22), f"{metres}", fill=(200, 200, 200), font=_font(18))
    draw.text((left + width + 12, top + 8), "m deep", fill=(200, 200, 200), font=_font(20))


def save_score(path: Path, result: CameraResult) -> None:
    """Draws the score of one camera over shifts of the points' picture: bright where edges agree. The cross is the
    calibration as given, the ring the best shift. A right calibration has one bright spot, at the cross."""
    grid = np.clip(result.grid / max(6.0, float(result.grid.max())), 0, 1)
    side = len(grid)
    shades = (np.stack([grid**0.7, grid**1.4, 0.25 + 0.35 * grid**3], axis=2) * 255).astype(np.uint8)
    map_ = Image.fromarray(shades).resize((side * _CELL, side * _CELL), Image.Resampling.NEAREST)
    margin, top = 70, 92
    picture = Image.new("RGB", (map_.width + 2 * margin, map_.height + top + 70), (12, 13, 16))
    picture.paste(map_, (margin, top))
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 14), f"{result.name}: agreement of edges", fill=(235, 235, 235), font=_font(24))
    best = f"best {result.best_score:.1f} at {result.best_shift[0]:+.1f}, {result.best_shift[1]:+.1f} degrees"
    draw.text((margin, 50), f"as given {result.score:.1f} (cross), {best}", fill=(200, 200, 200), font=_font(20))
    middle = (margin + map_.width / 2, top + map_.height / 2)
    for dx, dy in ((1, 0), (0, 1)):
        ends = [(middle[0] + s * 14 * dx, middle[1] + s * 14 * dy) for s in (-1, 1)]
        draw.line(ends, fill=(255, 255, 255), width=2)
    per_degree = map_.width / 2 / 3.0 * (side - 1) / side
    x, y = middle[0] + per_degree * result.best_shift[0], middle[1] + per_degree * result.best_shift[1]
    draw.ellipse([x - 11, y - 11, x + 11, y + 11], outline=(255, 255, 255), width=2)
    for degrees in range(-3, 4):
        place = degrees * per_degree
        draw.text(
            (middle[0] + place - 10, top + map_.height + 6), f"{degrees:+d}", fill=(200, 200, 200), font=_font(18)
        )
        draw.text((margin - 40, middle[1] + place - 10), f"{degrees:+d}", fill=(200, 200, 200), font=_font(18))
    label = "points shifted to the right, degrees (and down, at the left)"
    draw.text((margin, top + map_.height + 34), label, fill=(200, 200, 200), font=_font(18))
    with atomic_path(path) as draft:
        picture.save(draft, format="PNG")
