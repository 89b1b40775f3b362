"""Pictures of a scan: a chase-camera view and bird's-eye views, coloured by features and, for comparison, by height.

Points are drawn by our own small splatter (painter's order, size falling with distance, eye-dome lighting after
Boucheny 2009, "Visualisation scientifique de grands volumes de données", so that shapes stay readable without normals);
matplotlib lays the panels out and writes the text. Sizes, angles and strengths are our choice, made by eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clever3d.errors import InputError, MissingExtraError
from clever3d.io import atomic_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BACKGROUND = (13, 15, 21)
_FRAME = (7, 8, 12)
_INVALID_GREY = 90
_SUPERSAMPLING = 2
_DPI = 100
_CHASE_PITCH = np.radians(21.0)
_FIGURE_PX = (2400, 1720)  # width, height
_TEXT = "#e8eaf0"
#: Where the sensor is and where it looks: an arrow on the ground, [4, 3] metres.
_EGO_ARROW = np.array([[1.4, 0.0, 0.0], [-1.1, 0.7, 0.0], [-0.6, 0.0, 0.0], [-1.1, -0.7, 0.0]])


@dataclass(frozen=True)
class _Splats:
    """Points as they fall on a canvas, before they are drawn."""

    u: NDArray[np.float32]  # [M] pixels to the right
    v: NDArray[np.float32]  # [M] pixels down
    depth: NDArray[np.float32]  # [M] smaller is drawn on top
    radius: NDArray[np.float32]  # [M] pixels
    index: NDArray[np.intp]  # [M] rows of the cloud


def height_colors(xyz: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours points by height above the ground: [N, 3] metres (FLU) -> uint8 [N, 3] RGB (matplotlib's turbo).

    The scale starts at the ground (the densest height among the points within 25 m) and ends where 97 % of the points
    are below, 3 to 10 m above it: stray points or a tower do not wash the street out. Non-finite points are grey.
    """
    points = _checked_points(xyz)
    colors = np.full((len(points), 3), _INVALID_GREY, dtype=np.uint8)
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        return colors
    ground = _ground_height(points[finite])
    above = points[finite, 2] - ground
    top = float(np.clip(np.quantile(above, 0.97), 3.0, 10.0))
    scaled = (above + 0.4) / (top + 0.4)
    # The ends of turbo are nearly black: leave them out on a dark background.
    tone = 0.08 + 0.87 * np.clip(scaled, 0.0, 1.0) ** 0.7
    lookup = (_matplotlib().colormaps["turbo"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    colors[finite] = lookup[(tone * 255).astype(np.intp)]
    return colors


def save_feature_picture(
    path: str | Path,
    xyz: NDArray[Any],
    features_rgb: NDArray[np.uint8],
    *,
    title: str | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> None:
    """Writes a PNG (2400 x 1720) of one scan coloured by its features, beside colouring by height.

    Args:
        path: the PNG to write; replaced in one step, so no half-written picture is ever seen. Its folder must exist.
        xyz: [N, 3] metres, sensor frame FLU (x forward, y left, z up). Non-finite points are left out.
        features_rgb: [N, 3] uint8, one colour per point, e.g. from ``clever3d.pca_colors``.
        title: one line above the picture.
        valid: [N] bool, points that have features; the others are drawn grey, behind.

    Raises:
        InputError: shapes or dtypes that do not fit, or no finite point at all.
        MissingExtraError: matplotlib is not installed.
    """
    points = _checked_points(xyz)
    rgb = _checked_colors(features_rgb, len(points), valid)
    keep = np.isfinite(points).all(axis=1)
    if not keep.any():
        raise InputError(f"xyz has no finite point (of {len(points)}): there is nothing to draw")
    points, rgb = points[keep], rgb[keep]
    by_height = height_colors(points)
    extent = _bird_extent(points)
    density, ground = _point_scale(points), _ground_height(points)

    figure = _new_figure()
    panels = _layout()
    contents = {
        "chase": (rgb, "features: colours are their first three principal components"),
        "bird": (rgb, "features, bird's eye"),
        "bird_height": (by_height, "height, bird's eye"),
        "chase_height": (by_height, "height, same view"),
    }
    for name, (colors, caption) in contents.items():
        size = panels[name][2:]
        if name.startswith("bird"):
            axes = _add_panel(figure, panels[name], _render(_bird_splats(points, size, extent, density), colors, size))
            _add_scale_bar(axes, size, extent)
        else:
            camera = _chase_camera(size, ground)
            axes = _add_panel(figure, panels[name], _render(_chase_splats(points, camera, density), colors, size))
            _add_ego(axes, *camera.project(_EGO_ARROW + np.array([0.0, 0.0, ground]))[:2])
        _add_text(axes, 16, 16, caption, va="top", ha="left")
    if title:
        figure.text(0.5, 1 - 34 / _FIGURE_PX[1], title, color="#ffffff", fontsize=20, ha="center", va="center")
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png", dpi=_DPI, facecolor=figure.get_facecolor())


# ---------------------------------------------------------------------------------------------------- checks


def _checked_points(xyz: NDArray[Any]) -> NDArray[np.float32]:
    points = np.asarray(xyz)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"xyz must be [N, 3], got {list(points.shape)}; pass points[:, :3]")
    return points.astype(np.float32)


def _checked_colors(features_rgb: NDArray[np.uint8], count: int, valid: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    rgb = np.asarray(features_rgb)
    if rgb.shape != (count, 3) or rgb.dtype != np.uint8:
        raise InputError(
            f"features_rgb must be uint8 [{count}, 3] to go with xyz, got {rgb.dtype} {list(rgb.shape)}; "
            "clever3d.pca_colors(features, valid) makes such colours"
        )
    if valid is None:
        return rgb
    mask = np.asarray(valid, dtype=bool)
    if mask.shape != (count,):
        raise InputError(f"valid must be [{count}] to go with xyz, got {list(mask.shape)}")
    return np.where(mask[:, None], rgb, np.uint8(_INVALID_GREY)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- what is where


def _ground_height(points: NDArray[np.float32]) -> float:
    """The densest 0.2 m layer of the points within 25 m, below the sensor's height if there are any there."""
    distance = np.hypot(points[:, 0], points[:, 1])
    near = points[distance < 25.0, 2]
    heights = near if near.size else points[:, 2]
    low, high = np.quantile(heights, [0.01, 0.99])
    layers = np.arange(low, max(high, low + 0.4) + 0.2, 0.2)
    counts, edges = np.histogram(heights, bins=layers)
    return float(edges[int(np.argmax(counts))] + 0.1)


def _bird_extent(points: NDArray[np.float32]) -> float:
    """Half the side of the bird's-eye square, metres: where most of the points are, between 15 and 50 m."""
    reach = float(np.quantile(np.abs(points[:, :2]).max(axis=1), 0.93))
    return float(np.clip(reach, 15.0, 50.0))


def _point_scale(points: NDArray[np.float32]) -> float:
    """Sparse scans get larger dots: 1 at the 120,000 points of a 64-beam sensor, about 1.6 at 30,000."""
    return float(np.clip((120_000 / max(len(points), 1)) ** 0.35, 0.8, 2.2))


@dataclass(frozen=True)
class _ChaseCamera:
    """Pinhole camera behind and above the sensor, looking ahead and down."""

    eye: NDArray[np.float32]  # [3] metres
    focal: float  # pixels
    size: tuple[int, int]  # width, height

    def project(self, points: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """[M, 3] -> pixels right, pixels down, depth in metres, [M] each."""
        cos, sin = np.cos(_CHASE_PITCH), np.sin(_CHASE_PITCH)
        forward, down, right = np.array([cos, 0, -sin]), np.array([-sin, 0, -cos]), np.array([0, -1.0, 0])
        local = (points - self.eye) @ np.stack([right, down, forward], axis=1).astype(np.float32)
        depth = local[:, 2]
        scale = self.focal / np.maximum(depth, 1e-3)
        centre = 0.09 * self.size[1] + self.focal * np.tan(_CHASE_PITCH)  # keeps the horizon near the upper edge
        return scale * local[:, 0] + self.size[0] / 2, scale * local[:, 1] + centre, depth


def _chase_camera(size: tuple[int, int], ground: float) -> _ChaseCamera:
    width, height = size
    # A wide panel is filled from top to bottom, a square one shows about the same from left to right.
    focal = 1.12 * height if width > 2 * height else 0.66 * width
    return _ChaseCamera(np.array([-11.5, 0.0, ground + 8.2], dtype=np.float32), focal, size)


def _chase_splats(points: NDArray[np.float32], camera: _ChaseCamera, scale: float) -> _Splats:
    u, v, depth = camera.project(points)
    radius = 2.9 * (20.0 / np.maximum(depth, 5.0)) ** 0.55
    radius = scale * (camera.size[0] / 2400) ** 0.5 * np.clip(radius, 1.1, 4.4)
    return _on_canvas(u, v, depth, radius, depth > 5.0, camera.size)  # nearer ones would fill the view


def _bird_splats(points: NDArray[np.float32], size: tuple[int, int], extent: float, scale: float) -> _Splats:
    """From above, driving direction up; the higher point is drawn over the lower one."""
    width, height = size
    per_metre = min(width, height) / (2 * extent)
    u = width / 2 - points[:, 1] * per_metre
    v = height / 2 - points[:, 0] * per_metre
    # As if seen from far above: the relief then shades as strongly as the perspective view's.
    depth = 60.0 - np.clip(points[:, 2], -20.0, 20.0)
    distance = np.hypot(points[:, 0], points[:, 1])
    radius = scale * np.clip(0.85 + distance / 45.0, 0.8, 1.8)
    return _on_canvas(u, v, depth, radius, np.ones(len(points), dtype=bool), size)


def _on_canvas(
    u: NDArray[Any],
    v: NDArray[Any],
    depth: NDArray[Any],
    radius: NDArray[Any],
    seen: NDArray[np.bool_],
    size: tuple[int, int],
) -> _Splats:
    inside = seen & (u > -4) & (u < size[0] + 4) & (v > -4) & (v < size[1] + 4)
    index = np.flatnonzero(inside)
    u, v, depth, radius = (np.asarray(column[index], dtype=np.float32) for column in (u, v, depth, radius))
    return _Splats(u, v, depth, radius, index)


# -------------------------------------------------------------------------------------------------- rendering


def _render(splats: _Splats, colors: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draws discs on a canvas of twice the size, shades by depth, averages down: uint8 [H, W, 3]."""
    factor = _SUPERSAMPLING
    owner, depth = _nearest_splats(splats, size[0] * factor, size[1] * factor, factor)
    palette = np.vstack([colors[splats.index], np.array([_BACKGROUND], dtype=np.uint8)])  # owner -1: the background
    shade = _eye_dome_shade(depth, reach=factor)
    image = np.zeros((size[1], size[0], 3), dtype=np.float32)
    background = np.array(_BACKGROUND, dtype=np.float32)
    for down in range(factor):
        for right in range(factor):
            part = palette[owner[down::factor, right::factor]]
            image += background + (part - background) * shade[down::factor, right::factor, None]
    return (image / factor**2 + 0.5).astype(np.uint8)


def _nearest_splats(
    splats: _Splats, width: int, height: int, factor: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which splat each pixel shows (-1: none) and its depth (inf: none), [H, W] each.

    A splat covers the pixels whose centres lie in its disc, and always the one it falls in.
    """
    far_first = np.argsort(-splats.depth, kind="stable").astype(np.int32)
    u, v, radius = (values[far_first] * factor for values in (splats.u, splats.v, splats.radius))
    depth = splats.depth[far_first]
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    shown = np.full(width * height, -1, dtype=np.int32)
    buffer = np.full(width * height, np.inf, dtype=np.float32)
    reach = int(np.ceil(radius.max(initial=0.5)))
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            # The pixel's centre is at least so far from a splat, wherever that lies in its own pixel.
            large = np.flatnonzero(radius >= np.hypot(max(abs(down) - 0.5, 0), max(abs(right) - 0.5, 0)))
            x, y = column[large] + right, row[large] + down
            covered = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            if down or right:
                covered &= (x + 0.5 - u[large]) ** 2 + (y + 0.5 - v[large]) ** 2 <= radius[large] ** 2
            large, pixel = large[covered], (y * width + x)[covered]
            nearer = depth[large] < buffer[pixel]
            large, pixel = large[nearer], pixel[nearer]
            # Where two splats write one pixel numpy keeps the last, and the last is the nearest.
            buffer[pixel], shown[pixel] = depth[large], far_first[large]
    return shown.reshape(height, width), buffer.reshape(height, width)


def _eye_dome_shade(depth: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Darkens a pixel by how much nearer its neighbours are, in log depth: [H, W] -> factors in (0, 1]."""
    log_depth = np.log2(np.where(np.isfinite(depth), depth, 1e4)).astype(np.float32)
    obscurance = np.zeros_like(log_depth)
    for step in (reach, 2 * reach):
        padded = np.pad(log_depth, step, mode="edge")
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            rows = slice(step + down * step, step + down * step + depth.shape[0])
            columns = slice(step + right * step, step + right * step + depth.shape[1])
            obscurance += np.clip(log_depth - padded[rows, columns], 0.0, 0.12)
    shade: NDArray[np.float32] = np.exp(-1.6 * obscurance).astype(np.float32)
    return shade


# ------------------------------------------------------------------------------------------------- matplotlib


def _matplotlib() -> Any:
    """The package with the parts used here. Never pyplot: its global state belongs to the user."""
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.patheffects
    except ImportError as error:
        raise MissingExtraError(
            'pictures need matplotlib, which is not installed: pip install "clever3d[view]"'
        ) from error
    return matplotlib


def _layout() -> dict[str, tuple[int, int, int, int]]:
    """Panels in pixels from the top left: (left, top, width, height)."""
    gap, top = 12, 68
    width = _FIGURE_PX[0] - 2 * gap
    third = (width - 2 * gap) // 3
    lower = _FIGURE_PX[1] - top - 2 * gap - third
    below = top + lower + gap
    return {
        "chase": (gap, top, width, lower),
        "bird": (gap, below, third, third),
        "bird_height": (gap + third + gap, below, third, third),
        "chase_height": (gap + 2 * (third + gap), below, third, third),
    }


def _new_figure() -> Any:
    figure = _matplotlib().figure.Figure(figsize=(_FIGURE_PX[0] / _DPI, _FIGURE_PX[1] / _DPI), dpi=_DPI)
    _matplotlib().backends.backend_agg.FigureCanvasAgg(figure)
    figure.patch.set_facecolor(_unit_rgb(_FRAME))
    return figure


def _unit_rgb(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255


def _add_panel(figure: Any, panel: tuple[int, int, int, int], image: NDArray[np.uint8]) -> Any:
    left, top, width, height = panel
    total_width, total_height = _FIGURE_PX
    box = [left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height]
    axes = figure.add_axes(box)
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return axes


def _add_scale_bar(axes: Any, size: tuple[int, int], extent: float) -> None:
    """A bar of 10 m and the sensor's place and heading."""
    width, height = size
    per_metre = min(width, height) / (2 * extent)
    right, bottom = width - 24, height - 24
    left = right - 10 * per_metre
    axes.plot([left, right], [bottom, bottom], color=_TEXT, linewidth=3, solid_capstyle="butt")
    _add_text(axes, (left + right) / 2, bottom - 8, "10 m", ha="center", va="bottom")
    scale = max(per_metre, 10.0)
    _add_ego(axes, width / 2 - scale * _EGO_ARROW[:, 1], height / 2 - scale * _EGO_ARROW[:, 0])


def _add_ego(axes: Any, u: NDArray[Any], v: NDArray[Any]) -> None:
    """The sensor's arrow; what of it is outside the panel is cut off."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.fill(u, v, color="#ffffff", alpha=0.9, linewidth=0)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _add_text(axes: Any, x: float, y: float, text: str, **place: str) -> None:
    outline = _matplotlib().patheffects.withStroke(linewidth=4, foreground=_unit_rgb(_BACKGROUND))
    axes.text(x, y, text, color=_TEXT, fontsize=15, path_effects=[outline], **place)
