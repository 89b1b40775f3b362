"""Writes a tiny PandaSet sequence in the published layout: three frames, two LiDARs, one camera of six.

The tables are pickles of pandas 1.0, written without pandas: opcode by opcode as in the published files.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

HALF = 0.5**0.5


class Name:
    """A global that the pickle asks for."""

    def __init__(self, module: str, name: str) -> None:
        self.text = f"{module}\n{name}\n".encode()


class Made:
    """An object made by calling `kind` (NEWOBJ, or REDUCE for a function), then given a state."""

    def __init__(self, kind: Name, arguments: tuple[Any, ...], state: Any = None, *, call: bool = False) -> None:
        self.kind, self.arguments, self.state, self.call = kind, arguments, state, call


class TablePickler(pickle._Pickler):  # the one in Python: it lets every object be written by hand
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(pickle.GLOBAL + obj.text)
        elif isinstance(obj, Made):
            self.save(obj.kind)
            self.save(obj.arguments)
            self.write(pickle.REDUCE if obj.call else pickle.NEWOBJ)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, np.ndarray):
            self.save(array(obj))
        elif isinstance(obj, slice):
            self.save(Made(Name("builtins", "slice"), (obj.start, obj.stop, obj.step), call=True))
        else:
            super().save(obj, save_persistent_id)


def array(values: np.ndarray) -> Made:
    kind = values.dtype.str[1:]
    objects = kind == "O"
    order = "|" if objects or values.dtype.itemsize == 1 else "<"
    flags = (3, order, None, None, None, -1, -1, 63 if objects else 0)
    dtype = Made(Name("numpy", "dtype"), ("O8" if objects else kind, 0, 1), flags, call=True)
    data: Any = list(values.ravel()) if objects else np.ascontiguousarray(values).tobytes()
    state = (1, values.shape, dtype, False, data)
    reconstruct = Name("numpy.core.multiarray", "_reconstruct")
    return Made(reconstruct, (Name("numpy", "ndarray"), (0,), b"b"), state, call=True)


def index(kind: str, fields: dict[str, Any]) -> Made:
    module = "range" if kind == "RangeIndex" else "base"
    new = Name("pandas.core.indexes.base", "_new_Index")
    return Made(new, (Name(f"pandas.core.indexes.{module}", kind), fields), call=True)


def table(columns: dict[str, Any]) -> Made:
    """A DataFrame; columns of one type share a block, as pandas keeps them."""
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    arrays = {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in arrays.items()}
    rows = len(next(iter(arrays.values())))
    names = list(arrays)
    axes = [
        index("Index", {"data": np.array(names, dtype=object), "name": None}),
        index("RangeIndex", {"name": None, "start": 0, "stop": rows, "step": 1}),
    ]
    blocks = []
    for dtype in dict.fromkeys(str(a.dtype) for a in arrays.values()):
        places = [i for i, name in enumerate(names) if str(arrays[name].dtype) == dtype]
        step = places[1] - places[0] if len(places) > 1 else 1
        regular = places == list(range(places[0], places[0] + step * len(places), step))
        taken: Any = slice(places[0], places[0] + step * len(places), step) if regular else np.array(places)
        blocks.append({"values": np.stack([arrays[names[i]] for i in places]), "mgr_locs": taken})
    first = [block["values"] for block in blocks]
    items = [
        index(
            "Index", {"data": np.array([names[i] for i in np.arange(len(names))[b["mgr_locs"]]], object), "name": None}
        )
        for b in blocks
    ]
    state = (axes, first, items, {"0.14.1": {"axes": axes, "blocks": blocks}})
    manager = Made(Name("pandas.core.internals.managers", "BlockManager"), (), state)
    frame_state = {"_data": manager, "_typ": "dataframe", "_metadata": [], "attrs": {}}
    return Made(Name("pandas.core.frame", "DataFrame"), (), frame_state)


def write_pickle(path: Path, obj: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    TablePickler(file, protocol=3).dump(obj)
    path.write_bytes(gzip.compress(file.getvalue()))


def pose(position: list[float], heading: list[float]) -> dict[str, Any]:
    return {"position": dict(zip("xyz", position, strict=True)), "heading": dict(zip("wxyz", heading, strict=True))}


#: In world axes. At frame 1 the vehicle is at (10, 20, 0) and heads along the world's -x (its x, the right, is +y).
POINTS = np.array([[-0.807, 18.0, 0.85], [-0.807, 18.0, 0.85], [9.193, 23.0, -0.15]])
SENSORS = [0, 1, 0]
CUBOIDS: dict[str, Any] = {
    "uuid": ["car", "twin", "sign"],
    "label": ["Car", "Car", "Signs"],
    "yaw": [np.pi / 2, np.pi / 2, 0.0],  # along -x, which is ahead; along +y, which is to the right
    "stationary": [False, False, True],
    "camera_used": [-1, 0, -1],
    "position.x": [-5.0, -5.0, 9.193],
    "position.y": [18.0, 18.1, 23.0],
    "position.z": [1.0, 1.0, -0.15],
    "dimensions.x": [2.0, 2.0, 0.5],
    "dimensions.y": [4.0, 4.0, 1.0],
    "dimensions.z": [1.5, 1.5, 2.0],
    "attributes.object_motion": ["Moving", "Moving", float("nan")],
    "cuboids.sibling_id": ["twin", "car", "-"],
    "cuboids.sensor_id": [0, 1, -1],
}


def lidar_columns() -> dict[str, Any]:
    columns: dict[str, Any] = {axis: POINTS[:, i] for i, axis in enumerate("xyz")}
    return {**columns, "i": np.array([51.0, 102.0, 255.0]), "t": np.full(3, 1.5e9), "d": np.array(SENSORS)}


def write_sequence(folder: Path, *, camera: bool = True, semseg: bool = True) -> Path:
    """Frames 0, 1, 2 at 0, 0.1 and 0.2 s; the vehicle drives 1 m a frame (10 m/s), the car 0.5 m a frame."""
    heading = [HALF, 0, 0, HALF]
    for number in range(3):
        name = f"{number:02d}.pkl.gz"
        write_pickle(folder / "lidar" / name, table(lidar_columns()))
        # the car and its twin go ahead, along -x; the sign stays
        x = np.array(CUBOIDS["position.x"]) - 0.5 * (number - 1) * np.array([1, 1, 0])
        write_pickle(folder / "annotations" / "cuboids" / name, table({**CUBOIDS, "position.x": x}))
        if semseg:
            write_pickle(folder / "annotations" / "semseg" / name, table({"class": np.array([13, 14, 36])}))
    poses = [pose([11.0 - number, 20, 0], heading) for number in range(3)]
    (folder / "lidar" / "poses.json").write_text(json.dumps(poses))
    (folder / "lidar" / "timestamps.json").write_text(json.dumps([100.0, 100.1, 100.2]))
    if camera:
        # It looks ahead: its x is the world's +y, its y the world's -z, its z the world's -x.
        front = folder / "camera" / "front_camera"
        front.mkdir(parents=True)
        poses = [pose([10.5 - number, 20, 1.85], [0.5, -0.5, -0.5, 0.5]) for number in range(3)]
        (front / "poses.json").write_text(json.dumps(poses))
        (front / "timestamps.json").write_text(json.dumps([99.95, 100.05, 100.15]))
        (front / "intrinsics.json").write_text(json.dumps({"fx": 1000, "fy": 900, "cx": 970, "cy": 480}))
        for number in range(3):
            (front / f"{number:02d}.jpg").write_bytes(b"never decoded here")
    return folder
