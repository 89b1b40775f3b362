"""The places there are, and how a scene is made of one of them and a seed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.place_car_park import car_park
from clever3d.datasets.synthetic.place_crossing import crossing
from clever3d.datasets.synthetic.place_motorway import motorway
from clever3d.datasets.synthetic.place_street import street
from clever3d.datasets.synthetic.scene import Builder, Scene
from clever3d.datasets.synthetic.sky import weather

#: Each puts what the place has into a builder and gives the way of the vehicle.
_BUILDERS: dict[str, Callable[[Builder], Callable[[float], Matrix]]] = {
    "street": street,
    "crossing": crossing,
    "motorway": motorway,
    "car_park": car_park,
}
PLACES = tuple(_BUILDERS)


@functools.lru_cache(maxsize=1)
def build_scene(place: str, seed: int, duration: float) -> Scene:
    """The scene of a place and a seed, for `duration` seconds of driving; the last one is kept (some 300 MB)."""
    rng = np.random.default_rng([seed, PLACES.index(place)])
    builder = Builder(rng, duration)
    pose = _BUILDERS[place](builder)
    return builder.scene(pose, weather(rng))
