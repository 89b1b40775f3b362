"""What opening nuScenes needs of its tables, as arrays: the key frames, and the chain of LIDAR_TOP's sweeps.

Radars, and the cameras' sweeps between key frames, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.index_cache import Arrays, cached_arrays, fingerprint
from clever3d.datasets.nuscenes_tables import Numbering, Rows, dangling, stream, token_numbers, whole_table
from clever3d.errors import DataError

Numbers: TypeAlias = NDArray[np.int64]

LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
#: The channels of the index, by number.
CHANNELS = (LIDAR, *CAMERAS)
#: What the index and the boxes are made of; the last four may be missing.
TABLES = (
    "scene", "sample", "sensor", "calibrated_sensor", "sample_data", "ego_pose",
    "lidarseg", "sample_annotation", "instance", "category",
)  # fmt: skip
#: Raised whenever the arrays change their meaning.
VERSION = 1


@dataclass(frozen=True)
class Index:
    """The arrays, and of which tables they are.

    Of S samples (by scene in the order of the table, then by time) and C = 7 channels (LIDAR_TOP first):
    scene_names [scenes] text. tokens [S] text. scenes [S]: number of the scene. sample_times [S], microseconds.
    files [S, C] text, below the root; empty where the sample has no key frame of the channel. times [S, C].
    image_sizes [S, C, 2]: width, height. poses [S, C, 7]: of the ego vehicle, see `Rows.poses`. mounts [S, C]: row of
    mount_poses [M, 7] and intrinsics [M, 3, 3]. label_files [S] text: empty where there are none.
    Of LIDAR_TOP's L sweeps, key frames included: sweeps [S], the number of the sample's own, or -1; sweep_files [L]
    text, sweep_times [L], sweep_poses [L, 7], sweep_mounts [L], sweep_before [L]: the number of the one before, or -1.
    """

    tables: Path
    key: str
    arrays: Arrays


def open_index(tables: Path) -> Index:
    """The index of a tables' folder, from the cache if it is there. Raises DataError for anything wrong in a table."""
    key = fingerprint((tables / f"{name}.json" for name in TABLES), VERSION)
    return Index(tables, key, cached_arrays("nuscenes-frames", tables, key, lambda: make_index(tables)))


def make_index(tables: Path) -> dict[str, NDArray[Any]]:
    """The arrays that `Index` describes, from the tables."""
    scenes = whole_table(tables, "scene")
    samples = whole_table(tables, "sample")
    scene_of = samples.links("scene_token", token_numbers(scenes), "scene")
    sample_times = samples.integers("timestamp")
    token_numbers(samples)
    order = np.lexsort([sample_times, scene_of])
    samples = samples.select(order)
    mount_channels, mounts = _mounts(tables)
    data = _Data.read(tables, mount_channels, samples)
    rows = _key_rows(data, samples)  # [S, C]
    there = rows >= 0
    lidar = np.flatnonzero(data.channels == 0)  # [L]
    sweep_of = np.full(len(data.channels) + 1, -1)  # the last for row -1
    sweep_of[lidar] = np.arange(len(lidar))
    before, label_files = _before(data, lidar, sweep_of), _label_files(tables, data, rows[:, 0])
    return {
        "scene_names": scenes.texts("name"),
        "tokens": samples.texts("token"),
        "scenes": scene_of[order].astype(np.int32),
        "sample_times": sample_times[order],
        "files": np.where(there, data.files[rows], b""),
        "times": np.where(there, data.times[rows], 0),
        "image_sizes": np.where(there[..., None], data.sizes[rows], 0).astype(np.int32),
        "poses": np.where(there[..., None], data.poses[rows], 0.0),
        "mounts": np.where(there, data.mounts[rows], 0).astype(np.int32),
        **mounts,
        "label_files": label_files,
        "sweeps": sweep_of[rows[:, 0]].astype(np.int32),
        "sweep_files": data.files[lidar],
        "sweep_times": data.times[lidar],
        "sweep_poses": data.poses[lidar],
        "sweep_mounts": data.mounts[lidar].astype(np.int32),
        "sweep_before": before.astype(np.int32),
    }


def _mounts(tables: Path) -> tuple[dict[str, tuple[int, int]], dict[str, Matrix]]:
    """calibrated_sensor token -> its row and its channel's number (-1: none of the index's), and the rows' arrays."""
    sensors = whole_table(tables, "sensor")
    rows = whole_table(tables, "calibrated_sensor")
    names = sensors.values("channel")
    numbers = {name: number for number, name in enumerate(CHANNELS)}
    channels = [numbers.get(names[i], -1) for i in rows.links("sensor_token", token_numbers(sensors), "sensor")]
    cameras = np.flatnonzero(np.array(channels, dtype=np.int64) > 0)
    intrinsics = np.zeros((len(rows), 3, 3))
    intrinsics[cameras] = rows.select(cameras).numbers("camera_intrinsic", (3, 3))
    arrays = {"mount_poses": rows.poses(), "intrinsics": intrinsics}
    return {token: (row, channels[row]) for token, row in token_numbers(rows).items()}, arrays


@dataclass(frozen=True)
class _Data:
    """The R rows of sample_data that count: all of LIDAR_TOP, and the cameras' key frames.

    own, before [R]: numbers of the rows' tokens and of those of their `prev`, in `tokens`.
    """

    files: NDArray[np.bytes_]
    times: Numbers
    sizes: Numbers  # [R, 2]
    channels: Numbers
    mounts: Numbers
    poses: Matrix  # [R, 7]
    samples: Numbers
    key_frames: NDArray[np.bool_]
    own: Numbers
    before: Numbers
    tokens: Numbering
    path: Path

    @classmethod
    def read(cls, tables: Path, mounts: dict[str, tuple[int, int]], samples: Rows) -> _Data:
        """The rows of sample_data, with the poses of ego_pose."""
        path = tables / "sample_data.json"
        mount_rows = {token: row for token, (row, _) in mounts.items()}
        channels = np.array([channel for _, channel in mounts.values()])
        sample_numbers = token_numbers(samples)
        tokens, poses = Numbering(), Numbering()
        parts: list[dict[str, NDArray[Any]]] = []
        for rows in _kept(path, mount_rows, channels):
            mount = rows.links("calibrated_sensor_token", mount_rows, "calibrated_sensor")
            part = {
                "files": rows.texts("filename"),
                "times": rows.integers("timestamp"),
                "sizes": np.stack([rows.integers("width"), rows.integers("height")], axis=1),
                "channels": channels[mount],
                "mounts": mount,
                "poses": poses.of(rows, "ego_pose_token"),
                "samples": rows.links("sample_token", sample_numbers, "sample"),
                "key_frames": np.array(rows.values("is_key_frame"), dtype=bool),
                "own": tokens.of(rows, "token"),
                "before": tokens.of(rows, "prev"),
            }
            parts.append(part)
        if not parts:
            raise DataError(f"{path} has no row of {LIDAR} or of a camera; use the tables of nuScenes v1.0")
        joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        joined["poses"] = _ego_poses(tables, poses)[joined["poses"]]
        return cls(**joined, tokens=tokens, path=path)


def _kept(path: Path, mount_rows: dict[str, int], channels: Numbers) -> Iterator[Rows]:
    """The rows of sample_data that `_Data` is made of."""
    for piece in stream(path):
        channel = channels[piece.links("calibrated_sensor_token", mount_rows, "calibrated_sensor")]
        key_frame = np.array(piece.values("is_key_frame"), dtype=bool)
        yield piece.select(np.flatnonzero((channel == 0) | (key_frame & (channel > 0))))


def _ego_poses(tables: Path, wanted: Numbering) -> Matrix:
    """The poses [numbers, 7] of the tokens that `wanted` knows: four rows of five belong to sensors left out here."""
    path, known = tables / "ego_pose.json", wanted.known
    poses = np.full((len(known), 7), np.nan)
    for piece in stream(path, {token.encode() for token in known}):
        tokens = piece.tokens("token")
        rows = Rows(path, [row for row, token in zip(piece.rows, tokens, strict=True) if token in known])
        poses[wanted.of(rows, "token")] = rows.poses()
    if len(missing := np.flatnonzero(np.isnan(poses[1:, 0]))):
        raise dangling(tables / "sample_data.json", "ego_pose_token", wanted.token(missing[0] + 1), "ego_pose")
    return poses


def _key_rows(data: _Data, samples: Rows) -> Numbers:
    """The key frames' rows in `data` [S, C], -1 where a sample lacks a channel."""
    keys = np.flatnonzero(data.key_frames)
    rows = np.full((len(samples), len(CHANNELS)), -1)
    rows[data.samples[keys], data.channels[keys]] = keys
    again = keys[rows[data.samples[keys], data.channels[keys]] != keys]
    if len(again):
        sample = samples.rows[data.samples[again[0]]]["token"]
        channel = CHANNELS[data.channels[again[0]]]
        raise DataError(f"{data.path}: two key frames of {channel} for sample {sample}; unpack the tables again")
    return rows


def _before(data: _Data, lidar: Numbers, sweep_of: Numbers) -> Numbers:
    """Of each sweep the number of the one before [L], -1 for the first of a scene."""
    row_of = data.tokens.rows(data.own, data.path)
    before = row_of[data.before[lidar]]
    wrong = np.flatnonzero((sweep_of[before] < 0) & (data.before[lidar] > 0))
    if len(wrong):
        token = data.tokens.token(data.before[lidar[wrong[0]]])
        raise dangling(data.path, "prev", token, "sample_data")
    return sweep_of[before]


def _label_files(tables: Path, data: _Data, key_rows: Numbers) -> NDArray[np.bytes_]:
    """The lidarseg file of each sample [S], empty where there is none."""
    if not (tables / "lidarseg.json").is_file():
        return np.zeros(len(key_rows), dtype="S1")
    table = whole_table(tables, "lidarseg")
    row_of = data.tokens.rows(data.own, data.path)
    known = {token: row_of[number] for token, number in data.tokens.known.items() if row_of[number] >= 0}
    rows = table.links("sample_data_token", known, "sample_data")
    files = table.texts("filename")
    found = np.zeros(len(data.own), dtype=files.dtype)
    found[rows] = files
    return np.where(key_rows >= 0, found[key_rows], b"")
