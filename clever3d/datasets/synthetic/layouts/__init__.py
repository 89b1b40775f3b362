"""Writers of whole synthetic data sets in the layouts of real ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from clever3d.datasets.synthetic.layouts.base import Layout, Plan, Scene
from clever3d.datasets.synthetic.layouts.kitti import KittiLayout
from clever3d.datasets.synthetic.layouts.nuscenes import NuScenesLayout
from clever3d.datasets.synthetic.layouts.rig import RigLayout
from clever3d.datasets.synthetic.layouts.run import Written, write_dataset
from clever3d.datasets.synthetic.layouts.semantickitti import SemanticKittiLayout
from clever3d.datasets.synthetic.truth import WorldFrame
from clever3d.errors import InputError, UnknownNameError

__all__ = [
    "LAYOUTS",
    "Layout",
    "Plan",
    "Scene",
    "Written",
    "embedded_world",
    "make_plan",
    "require_ray_casting",
    "write_dataset",
]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (NuScenesLayout(), SemanticKittiLayout(), KittiLayout(), RigLayout())
}
#: One in each place.
SCENES = 4
#: Half the size of the real images: a quarter of the time (our choice).
IMAGE_SCALE = 0.5
_LARGEST_SCALE = 4.0


def make_plan(
    layout: str,
    *,
    scenes: int = SCENES,
    frames: int | None = None,
    sensor: str | None = None,
    places: Iterable[str] | None = None,
    seed: int = 0,
    image_scale: float = IMAGE_SCALE,
    motion_distortion: bool = False,
    version: str = "",
) -> Plan:
    """A plan with the layout's own defaults where nothing is said, checked as far as it can be before the work.

    Raises UnknownNameError for a layout, a sensor or a place that does not exist, InputError for numbers out of range
    and for what the layout cannot hold.
    """
    from clever3d.datasets.synthetic.world import PLACES, SENSORS, simulate

    writer = LAYOUTS[_known(layout, LAYOUTS, "layout")]
    chosen = tuple(PLACES if places is None else places)
    for place in chosen:
        _known(place, PLACES, "place")
    frames = writer.frames if frames is None else frames
    for name, value, least in (
        ("scenes", scenes, 1),
        ("frames", frames, 1),
        ("places", len(chosen), 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name}={value}: give at least {least}")
    if not 0 < image_scale <= _LARGEST_SCALE:
        raise InputError(f"image scale {image_scale:g}: give a number above 0 and up to {_LARGEST_SCALE:g}")
    sensor = _known(sensor or writer.sensors[0], SENSORS, "sensor")
    if sensor not in writer.sensors:
        raise InputError(f"layout {layout} cannot hold the sensors {sensor!r}; take {' or '.join(writer.sensors)}")
    version = writer.version(version, scenes)
    plan = Plan(layout, scenes, frames, sensor, chosen, seed, float(image_scale), motion_distortion, version)
    simulate(sensor, place=chosen[0], seed=0, frames=frames, image_scale=image_scale)  # begins nothing, checks `frames`
    writer.check(plan)
    return plan


def embedded_world(scene: Scene) -> Iterable[WorldFrame]:
    """The frames of a scene, from the embedded world; sweeps between key frames for the layout that keeps them."""
    from clever3d.datasets.synthetic.world import simulate

    plan = scene.plan
    return simulate(
        plan.sensor,
        place=scene.place,
        seed=scene.seed,
        frames=plan.frames,
        motion_distortion=plan.motion_distortion,
        sweeps=plan.layout == NuScenesLayout.name,
        image_scale=plan.image_scale,
    )


def require_ray_casting() -> None:
    """Raises MissingExtraError if the packages of the embedded world are not installed, before it is built."""
    from clever3d.datasets.synthetic.mesh import quads
    from clever3d.datasets.synthetic.tracer import Tracer

    Tracer(quads([[[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]], 0, 0))


def _known(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is one of `known`; else UnknownNameError with the nearest one."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"there is no {what} {name!r}: choose one of {', '.join(known)}{hint}")
    return name
