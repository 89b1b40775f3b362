"""Where the vehicle of a KITTI raw drive was: its GPS/IMU packets (oxts) as poses, and its time stamps as seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from clever3d.datasets.geometry import Matrix, inverse, rigid
from clever3d.datasets.kitti_files import read_lines
from clever3d.errors import DataError

#: Metres; the raw development kit's latlonToMercator.m.
EARTH_RADIUS = 6378137.0
#: Latitude, longitude, altitude, roll, pitch, yaw and 24 more (dataformat.txt of the raw development kit).
COLUMNS = 30

_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?")


@dataclass(frozen=True, eq=False)
class Oxts:
    """The packets of one drive.

    files: by frame number. velo_to_imu [4, 4]. scale, origin: of the Mercator projection, from the drive's first
    packet; world axes are x east, y north, z up, with the origin there.
    """

    files: dict[int, Path]
    velo_to_imu: Matrix
    scale: float
    origin: Matrix

    @classmethod
    def of_drive(cls, files: dict[int, Path], imu_to_velo: Matrix) -> Oxts:
        """Raises DataError if the first packet cannot be read."""
        first = read_packet(files[min(files)])
        scale = float(np.cos(np.radians(first[0])))
        return cls(files, inverse(imu_to_velo), scale, mercator(first, scale))

    def points_to_world(self, number: int, scan: Path) -> Matrix:
        """The pose [4, 4] of the velodyne at frame `number`. Raises DataError if its packet is missing or damaged."""
        if number not in self.files:
            folder = next(iter(self.files.values())).parent
            raise DataError(f"{folder / f'{number:010d}.txt'} is missing, but {scan} exists; download the drive again")
        packet = read_packet(self.files[number])
        pose: Matrix = rigid(attitude(packet), mercator(packet, self.scale) - self.origin) @ self.velo_to_imu
        return pose


def read_packet(path: Path) -> Matrix:
    """One packet [30]: latitude, longitude (degrees), altitude (metres), roll, pitch, yaw (radians), ..."""
    lines = read_lines(path, "it holds the vehicle's position")
    try:
        values = np.array([float(word) for word in " ".join(lines).split()])
    except ValueError as error:
        raise DataError(f"{path} holds something that is no number; download the drive again") from error
    if len(lines) != 1 or values.size != COLUMNS or not np.isfinite(values[:6]).all():
        raise DataError(f"{path} has {values.size} values in {len(lines)} lines, expected {COLUMNS} numbers in one")
    return values


def mercator(packet: Matrix, scale: float) -> Matrix:
    """Position [3] in metres, x east, y north, z up.

    Source: latlonToMercator.m of the raw development kit, x = s r lon, y = s r ln tan(pi/4 + lat/2), lon and lat in
    radians; s is the cosine of the drive's first latitude, so that a metre is a metre there.
    """
    latitude, longitude = np.radians(packet[:2])
    north = np.log(np.tan(np.pi / 4 + latitude / 2))
    return np.array([scale * EARTH_RADIUS * longitude, scale * EARTH_RADIUS * north, packet[2]])


def attitude(packet: Matrix) -> Matrix:
    """Rotation [3, 3] from the IMU's axes (x forward, y left, z up) to the world's: Rz(yaw) Ry(pitch) Rx(roll).

    Source: convertOxtsToPose.m of the raw development kit; yaw 0 is east, counter-clockwise.
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(packet[3:6]), np.sin(packet[3:6])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: Matrix = about_z @ about_y @ about_x
    return rotation


class Timestamps:
    """A timestamps.txt: one line a frame, such as `2011-09-26 13:02:25.964389445`; empty where a frame is missing.

    The seconds are counted from 1970 as if the local time in the file were UTC; only their differences mean something.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError if the file cannot be read."""
        self.path = path
        self._lines = read_lines(path, "it holds the frames' times")

    def seconds(self, number: int) -> float | None:
        """Of frame `number`, None for an empty line. Raises DataError for a line that is no time, or a short file."""
        if number >= len(self._lines):
            raise DataError(f"{self.path} has {len(self._lines)} lines, but there is a frame {number}; it is truncated")
        line = self._lines[number].strip()
        if not line:
            return None
        found = _TIME.fullmatch(line)
        try:
            day = datetime.strptime(found[1] if found else line, "%Y-%m-%d %H:%M:%S")
        except ValueError as error:
            raise DataError(f"{self.path}: line {number + 1} is no time: {line[:40]!r}") from error
        return day.replace(tzinfo=timezone.utc).timestamp() + float((found and found[2]) or 0)
