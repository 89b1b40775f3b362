"""What lines a road: houses and gardens, trees, lamps, signs, parked vehicles, and the people on the pavement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic import buildings, furniture, people, plants, trucks, vehicles
from clever3d.datasets.synthetic.ground import KERB, Course
from clever3d.datasets.synthetic.materials import Material
from clever3d.datasets.synthetic.mesh import Mesh, merge
from clever3d.datasets.synthetic.scene import Builder
from clever3d.datasets.synthetic.traffic import MARGIN, Motion, Path
from clever3d.datasets.synthetic.truth import CLASSES

#: Meshes through which a walking person goes in one turn of the gait.
GAIT_PHASES = 8


_MENDED = Material((0.055, 0.055, 0.058), 0.15, "asphalt", 1.8)
_LID = Material((0.05, 0.045, 0.04), 0.2, "steel", 0.5)


@dataclass(frozen=True)
class Side:
    """One side of a road. sign: 1 left, -1 right of the course. begin, end: along it. kerb: distance of the kerb from
    the middle line. walk: (from, to) of the pavement and houses: distance of the fronts, from the middle line too."""

    course: Course
    sign: int
    begin: float
    end: float
    kerb: float
    walk: tuple[float, float]
    houses: float

    def facing(self) -> float:
        """The yaw, relative to the road, of something whose front looks at the road and whose own y points away."""
        return 0.0 if self.sign > 0 else np.pi

    def along(self, rng: np.random.Generator, low: float, high: float) -> list[float]:
        """Random places from begin to end, low to high metres apart."""
        places, s = [], self.begin + float(rng.uniform(0, high))
        while s < self.end:
            places.append(s)
            s += float(rng.uniform(low, high))
        return places


def vehicle(b: Builder, kinds: dict[str, float]) -> tuple[Mesh, str, float]:
    """A vehicle by chance: its mesh, class and length. kinds: the share of car, van, truck and bus."""
    share = np.array(list(kinds.values()))
    kind = str(b.rng.choice(list(kinds), p=share / share.sum()))
    maker, label = {
        "car": (vehicles.car, "car"),
        "van": (trucks.van, "truck"),
        "truck": (trucks.truck, "truck"),
        "bus": (trucks.bus, "bus"),
    }[kind]
    mesh = maker(b.rng, b.palette, CLASSES.index(label))
    low, high = mesh.bounds()
    return mesh, label, float(high[0] - low[0])


def groves(b: Builder, count: int, conifers: float, heights: tuple[float, float], grain: float) -> list[Mesh]:
    """A few trees to plant again and again; grain as in plants.tree."""
    return [
        (plants.conifer if b.rng.random() < conifers else plants.tree)(
            b.rng, b.palette, float(b.rng.uniform(*heights)), grain
        )
        for _ in range(count)
    ]


def plant(
    b: Builder, grove: list[Mesh], course: Course, s: float, left: float, size: tuple[float, float] = (0.8, 1.15)
) -> None:
    """One tree of the grove, turned and scaled by chance."""
    tree = grove[int(b.rng.integers(len(grove)))].scaled(float(b.rng.uniform(*size)))
    b.put(tree.tinted(b.rng.uniform(0.85, 1.15)), course, s, left, float(b.rng.uniform(0, 2 * np.pi)), 0.0)


def terrace(b: Builder, side: Side, storeys: tuple[int, int], gap: float, shops: float) -> None:
    """House after house right at the pavement."""
    s = side.begin
    while s < side.end - 8:
        width, depth = float(b.rng.uniform(9, 19)), float(b.rng.uniform(9, 13))
        if side.end - s - width < 6:
            width = side.end - s
        house = buildings.house(
            b.rng,
            b.palette,
            width,
            depth,
            int(b.rng.integers(storeys[0], storeys[1] + 1)),
            bool(b.rng.random() < shops),
        )
        b.put(house, side.course, s + width / 2, side.sign * (side.houses + b.rng.uniform(0, 0.3)), side.facing(), KERB)
        s += width + (float(b.rng.uniform(1.5, 5.0)) if b.rng.random() < gap else 0.02)


def gardens(b: Builder, side: Side, grove: list[Mesh]) -> None:
    """Detached houses behind fences, hedges or walls, with bushes and trees in their gardens."""
    s, edge = side.begin, side.walk[1] + 0.35
    while s < side.end - 9:
        plot = float(b.rng.uniform(13, 22))
        width = float(b.rng.uniform(0.55, 0.75)) * plot
        setback = side.houses + float(b.rng.uniform(-1.0, 2.5))
        house = buildings.house(b.rng, b.palette, width, float(b.rng.uniform(8, 11)), int(b.rng.integers(1, 4)), False)
        b.put(house, side.course, s + plot * 0.55, side.sign * setback, side.facing(), KERB)
        gate = float(b.rng.uniform(0.3, 0.7)) * plot
        for begin, end in ((s, s + gate - 0.9), (s + gate + 0.9, s + plot)):
            _enclose(b, side, begin, end, edge)
        for _ in range(int(b.rng.integers(1, 5))):
            at = side.sign * float(b.rng.uniform(edge + 0.9, max(setback - 1.0, edge + 1.2)))
            b.put(
                plants.bush(b.rng, b.palette, float(b.rng.uniform(0.6, 1.5))),
                side.course,
                s + float(b.rng.uniform(0.5, plot)),
                at,
                0.0,
                0.05,
            )
        if b.rng.random() < 0.5 and setback - edge > 4:
            plant(
                b, grove, side.course, s + float(b.rng.uniform(0, plot)), side.sign * (edge + setback) / 2, (0.5, 0.9)
            )
        if b.rng.random() < 0.6:
            plant(b, grove, side.course, s, side.sign * (setback + float(b.rng.uniform(6, 16))))
        if b.rng.random() < 0.4:
            turn = side.facing() + (np.pi / 2 if b.rng.random() < 0.5 else -np.pi / 2)
            mesh, label, _ = vehicle(b, {"car": 1.0})
            if setback - edge > 6.5:
                b.place(mesh, label, side.course, s + 2.2, side.sign * (edge + setback + 0.5) / 2, turn, KERB - 0.03)
        s += plot + 0.2


def _enclose(b: Builder, side: Side, begin: float, end: float, edge: float) -> None:
    """What separates a garden from the pavement, in short pieces where the road bends."""
    if end - begin < 1.5:
        return
    kind = b.rng.choice(["fence", "hedge", "wall", "open"], p=[0.32, 0.36, 0.22, 0.1])
    height, left = float(b.rng.uniform(0.8, 1.5)), side.sign * edge
    pieces = max(1, int(np.ceil((end - begin) / 5.0)))
    lines = np.linspace(begin, end, pieces + 1)
    length = float(lines[1] - lines[0])
    if kind == "fence":
        panel = buildings.fence(b.rng, b.palette, length)
        for s in lines[:-1]:
            b.put(panel, side.course, float(s), left, 0.0, 0.05)
    elif kind == "hedge":
        for s in lines[:-1]:
            piece = plants.hedge(b.rng, b.palette, length, height)
            b.put(piece, side.course, float(s) + length / 2, left + side.sign * 0.35, 0.0, 0.05)
    elif kind == "wall":
        piece = buildings.wall(b.rng, b.palette, np.array([(0.0, 0.0), (length + 0.02, 0.0)]), height)
        for s in lines[:-1]:
            b.put(piece, side.course, float(s), left, 0.0, 0.05)


class _Strip:
    """What of the strip along a kerb is taken."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float]] = []

    def takes(self, s: float, half: float) -> bool:
        """Takes s - half .. s + half if that is free."""
        free = all(abs(s - at) > half + other for at, other in self._taken)
        if free:
            self._taken.append((s, half))
        return free


def furnish(b: Builder, side: Side, trees: list[Mesh], *, tree_gap: tuple[float, float] | None) -> None:
    """Trees, lamps, signs, benches and two-wheelers between the kerb and the pavement, bins at its far edge."""
    rng, strip, edge = b.rng, _Strip(), side.kerb + 0.55
    lamp = furniture.street_light(b.palette, float(rng.uniform(6.0, 8.5)))
    for s in side.along(rng, 26, 32):
        if strip.takes(s, 0.3):
            b.put(lamp, side.course, s, side.sign * edge, -side.sign * np.pi / 2, KERB)
    for s in side.along(rng, 22, 45):
        kind = str(rng.choice(list(furniture.SIGNS)))
        # On the right they look at those who come along the course, on the left at the oncoming.
        turned = 0.0 if side.sign < 0 else np.pi
        if strip.takes(s, 0.4):
            b.put(furniture.sign(b.palette, kind), side.course, s, side.sign * edge, turned, KERB)
    for s in side.along(rng, *tree_gap) if tree_gap else ():
        if strip.takes(s, 0.5):
            plant(b, trees, side.course, s, side.sign * (side.kerb + 0.9))
    for s in side.along(rng, 40, 80):
        if strip.takes(s, 1.0):
            b.put(
                furniture.bench(b.palette), side.course, s, side.sign * (side.kerb + 1.3), side.sign * -np.pi / 2, KERB
            )
    for s in side.along(rng, 25, 60):
        for k in range(int(rng.integers(1, 4))):
            kind = "bicycle" if rng.random() < 0.75 else "motorcycle"
            yaw = float(rng.uniform(-0.1, 0.1)) + np.pi * int(rng.integers(2))
            if strip.takes(s + 2.3 * k, 1.1):
                b.place(machine(b, kind), kind, side.course, s + 2.3 * k, side.sign * (side.kerb + 1.0), yaw, KERB)
    for s in side.along(rng, 20, 55):
        yaw = float(rng.uniform(0, 2 * np.pi))
        b.put(furniture.bin_(b.palette, rng), side.course, s, side.sign * (side.walk[1] - 0.35), yaw, KERB)


def park(b: Builder, side: Side, share: float, clear: tuple[float, float] | None = None) -> None:
    """Vehicles parked along the kerb; none between the two s of `clear`."""
    s, left = side.begin, side.sign * (side.kerb - 1.1)
    while s < side.end - 7:
        mesh, label, length = vehicle(b, {"car": 0.86, "van": 0.14})
        middle = s + length / 2
        free = clear is None or not (clear[0] - length < middle < clear[1] + length)
        if b.rng.random() < share and free:
            yaw = (
                (np.pi if side.sign > 0 else 0.0)
                + float(b.rng.normal(0, 0.015))
                + (np.pi if b.rng.random() < 0.08 else 0)
            )
            b.place(mesh, label, side.course, middle, left + float(b.rng.normal(0, 0.06)), yaw)
        s += length + float(b.rng.uniform(0.7, 1.9))


def someone(b: Builder, walking: bool) -> tuple[Mesh, ...]:
    """A person, walking in GAIT_PHASES meshes or standing in one."""
    number = CLASSES.index("person")

    def make() -> tuple[Mesh, ...]:
        look = people.looks(b.rng, b.palette)
        if not walking:
            return (people.person(look, 0.0, number, stride=0.1),)
        return tuple(people.person(look, phase / GAIT_PHASES, number) for phase in range(GAIT_PHASES))

    return b.pooled(f"person {walking}", 14 if walking else 8, make)


def machine(b: Builder, kind: str) -> Mesh:
    """A bicycle or a motorcycle without a rider."""
    make = people.bicycle if kind == "bicycle" else people.motorcycle
    return b.pooled(kind, 6, lambda: (make(b.rng, b.palette, CLASSES.index(kind)),))[0]


def walkers(b: Builder, side: Side, count: int) -> None:
    """People on the pavement, one way and pace in each lane of it so that none walks through another; some stand.

    None leaves the side within the scene's time.
    """
    rng = b.rng
    lanes = np.arange(side.walk[0] + 0.4, max(side.walk[1] - 0.95, side.walk[0] + 0.5), 0.75)
    paces = [float(rng.uniform(0.9, 1.6)) for _ in lanes]
    ways = [1 if rng.random() < 0.5 else -1 for _ in lanes]
    s = np.arange(side.begin, side.end, 2.0)
    length = float(s[-1] - s[0])
    for k in range(count):
        chosen = int(rng.integers(len(lanes)))
        share = (k + float(rng.uniform(0.2, 0.8))) / count
        if rng.random() < 0.25:
            left, yaw = side.sign * (side.walk[1] - 0.35), float(rng.uniform(0, 2 * np.pi))
            b.place(someone(b, False)[0], "person", side.course, side.begin + share * length, left, yaw, KERB)
            continue
        points = side.course(s, side.sign * float(lanes[chosen]))
        path = Path.through(points if ways[chosen] > 0 else points[::-1])
        room = max(0.0, length - paces[chosen] * (b.duration + MARGIN))
        b.send(someone(b, True), "person", path, share * room, Motion.steady(paces[chosen]), KERB)


def riders(b: Builder, path: Path, offsets: list[float], motion: Motion, kind: str) -> None:
    """Cyclists ("bicyclist") or motorcyclists ("motorcyclist") along a path, all at the same speed."""
    number, motor = CLASSES.index(kind), kind == "motorcyclist"

    def make() -> tuple[Mesh, ...]:
        vehicle = (people.motorcycle if motor else people.bicycle)(b.rng, b.palette, number)
        look = people.looks(b.rng, b.palette, helmet=motor or b.rng.random() < 0.5)
        turns = [k / 6 for k in range(1 if motor else 6)]
        return tuple(merge([vehicle, people.rider(look, number, motor=motor, phase=turn)]) for turn in turns)

    for offset in offsets:
        b.send(b.pooled(kind, 6, make), kind, path, offset, motion)


def column(
    b: Builder,
    path: Path,
    motion: Motion,
    first: float,
    last: float,
    gap: tuple[float, float],
    kinds: dict[str, float],
) -> None:
    """Vehicles one after another on a lane, from `first` to `last` metres along it, all with the same motion."""
    place = first + float(b.rng.uniform(0, gap[0] / 2))
    while True:
        mesh, label, length = vehicle(b, kinds)
        if place + length > last:
            return
        b.send([mesh], label, path, place + length / 2, motion)
        place += length + float(b.rng.uniform(*gap))


def lane(course: Course, left: float, begin: float, end: float) -> Path:
    """The path along l = `left` from one s to another, in whichever direction."""
    s = np.linspace(begin, end, max(2, int(abs(end - begin) / 2)))
    points: Matrix = course(s, left)
    return Path.through(points)


def backdrop(b: Builder, middle: tuple[float, float], inner: float, blocks: bool) -> None:
    """What closes the view far off: a wide field, woods and, in towns, tall houses."""
    course = Course.straight((0.0, 0.0), 0.0)
    lines = np.array([-1500, -700, -320, 320, 700, 1500.0])
    kinds = np.full((5, 5), "field", dtype="<U8")
    kinds[2, 2] = ""
    b.still.append(b.paver.lay(course, lines + middle[0], lines + middle[1], kinds))
    grove = groves(b, 3, 0.4, (9, 15), 2.6)
    for _ in range(170):
        angle, radius = b.rng.uniform(0, 2 * np.pi), b.rng.uniform(inner, inner + 130)
        plant(b, grove, course, middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle), (0.8, 1.5))
    if blocks:
        for angle in np.linspace(0, 2 * np.pi, 26, endpoint=False):
            radius = inner + float(b.rng.uniform(0, 70))
            tall = buildings.house(
                b.rng, b.palette, float(b.rng.uniform(16, 34)), 14, int(b.rng.integers(4, 11)), False
            )
            b.put(
                tall,
                course,
                middle[0] + radius * np.cos(angle),
                middle[1] + radius * np.sin(angle),
                float(angle) + np.pi / 2,
                0,
            )


def patches(b: Builder, course: Course, s: tuple[float, float], half: float) -> None:
    """Mended asphalt and manholes."""
    for _ in range(int((s[1] - s[0]) / 22)):
        at, left = float(b.rng.uniform(*s)), float(b.rng.uniform(-half, half - 1.2))
        size = (float(b.rng.uniform(0.8, 6)), float(b.rng.uniform(0.6, 1.6)))
        b.still.append(b.paver.paint(course, (at, at + size[0]), (left, left + size[1]), _MENDED, "road", 0.004))
    for _ in range(int((s[1] - s[0]) / 30)):
        at, left = float(b.rng.uniform(*s)), float(b.rng.uniform(-half + 0.5, half - 0.5))
        b.still.append(b.paver.paint(course, (at, at + 0.6), (left, left + 0.6), _LID, "road", 0.006))
