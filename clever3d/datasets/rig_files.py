"""The files of a rig: which scans and images there are, when they were made, which go together, where the rig was."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix, quaternion_to_rotation, rigid, rotation_to_quaternion
from clever3d.datasets.rig_camera import CameraConfig, Times
from clever3d.datasets.rig_config import Matching
from clever3d.errors import DataError

SCAN_SUFFIXES = (".bin", ".npy", ".pcd")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".label", ".npy")

#: Poses are carried on at constant velocity for at most this long before the first and after the last, and
#: interpolated over gaps of at most this length (seconds; our choice: ten turns of a 10 Hz LiDAR).
POSE_GAP = 1.0


def list_files(folder: Path, pattern: str, suffixes: tuple[str, ...], where: str) -> list[Path]:
    """Files below `folder` that `pattern` (a glob or a folder's name) finds, sorted by path; hidden ones are left out.

    Raises DataError, beginning with `where`, if there is none.
    """
    wanted = folder / pattern  # an absolute pattern replaces the folder
    if wanted.is_dir():
        found = list(wanted.glob("*"))
    else:
        base = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else folder
        found = glob(base, str(wanted.relative_to(base)), where)
    visible = [path for path in found if not path.name.startswith(".")]
    files = sorted(path for path in visible if path.suffix.lower() in suffixes)
    if not files:
        other = f"; {visible[0]} is there, but is none" if visible else ""
        raise DataError(f"{where}: {wanted} finds no {' / '.join(suffixes)} file{other}; correct the pattern")
    return files


def glob(folder: Path, pattern: str, where: str) -> list[Path]:
    """What `pattern` finds below `folder`; DataError, beginning with `where`, if it is no relative pattern."""
    try:
        return list(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:  # pathlib's own for `a**`, "" and for absolute patterns
        raise DataError(f"{where}: {pattern!r} is no pattern of files in this folder ({error}); correct it") from error


def stem(path: Path) -> str:
    """The name without suffix, also without the first half of a double one: `x.pcd.bin` is `x`."""
    suffixes = (*SCAN_SUFFIXES, *IMAGE_SUFFIXES, *LABEL_SUFFIXES)
    name = path.stem
    while Path(name).suffix.lower() in suffixes:
        name = Path(name).stem
    return name


def by_stem(files: list[Path]) -> dict[str, Path]:
    """Files by their stem; DataError if two have the same."""
    found: dict[str, Path] = {}
    for path in files:
        name = stem(path)
        if name in found:
            raise DataError(f"{path} and {found[name]} both are the frame {name!r}; remove or rename one of them")
        found[name] = path
    return found


def by_number(files: list[Path]) -> dict[int, Path]:
    """Files by the last whole number of their name; DataError if one has none, or two have the same."""
    found: dict[int, Path] = {}
    for path in files:
        runs = re.findall(r"\d+", stem(path))
        if not runs:
            raise DataError(f"{path}: its name holds no number; rename it, or match in another way (`matching: by:`)")
        number = int(runs[-1])
        if number in found:
            raise DataError(f"{path} and {found[number]} both have the number {number}; remove or rename one of them")
        found[number] = path
    return found


def timestamps(files: list[Path], folder: Path, times: Times, where: str) -> NDArray[np.float64]:
    """The timestamp [N] of each file, seconds. Raises DataError, beginning with `where` or the file of the times."""
    if times.source == "names":
        texts = []
        for path in files:
            runs = re.findall(r"\d+(?:\.\d+)?", stem(path))
            if not runs:
                raise DataError(f"{where}: the name of {path} holds no number; give a text file of timestamps")
            texts.append(runs[-1])
    else:
        texts = _listed_times(files, folder / times.source, where)
    # Whole numbers are divided as such: 19 digits of nanoseconds do not fit into a float.
    seconds = [int(text) / times.per_second if text.isdigit() else float(text) / times.per_second for text in texts]
    return np.array(seconds, dtype=np.float64) + times.offset


def _listed_times(files: list[Path], path: Path, where: str) -> list[str]:
    lines = [(number, line.split()) for number, line in enumerate(_text(path, where).splitlines(), 1)]
    rows = [(number, words) for number, words in lines if words and not words[0].startswith("#")]
    for number, words in rows:
        if len(words) not in (1, 2) or not _is_time(words[-1]):
            raise DataError(f"{path}, line {number}: expected `NAME TIME` or `TIME`, got {' '.join(words)!r}")
    named = {words[0]: words[1] for _, words in rows if len(words) == 2}
    if not named:
        if len(rows) != len(files):
            raise DataError(
                f"{path} has {len(rows)} times for {len(files)} files ({files[0].name} ...); write `NAME TIME` lines"
            )
        return [words[0] for _, words in rows]
    missing = next((file for file in files if stem(file) not in named), None)
    if missing is not None:
        raise DataError(f"{path} has no line `{stem(missing)} TIME`, but {missing} exists; add it")
    return [named[stem(file)] for file in files]


def _is_time(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {path} is no text file") from error


@dataclass(frozen=True, eq=False)
class Partners:
    """The image of each scan, None where there is none, and its timestamp (NaN where unknown)."""

    images: list[Path | None]
    times: NDArray[np.float64]


def match_images(
    scans: list[Path],
    scan_times: NDArray[np.float64] | None,
    folder: Path,
    camera: CameraConfig,
    matching: Matching,
    where: str,
) -> Partners:
    """Finds the image of `camera` for every scan, as `matching` says.

    Raises DataError, beginning with `where`, if the camera has no image at all, or lacks one that it should have.
    """
    files = list_files(folder, camera.files, IMAGE_SUFFIXES, f"{where}.files")
    times = None
    if camera.times is not None:
        times = timestamps(files, folder, camera.times, f"{where}.timestamps")
    chosen: list[int | None]
    if matching.by == "time":
        assert times is not None and scan_times is not None
        chosen = _nearest(scan_times, times, matching.max_time_difference)
        reason = f"is nearer than {matching.max_time_difference:g} s to"
    else:
        rows = {path: row for row, path in enumerate(files)}
        if matching.by == "stem":
            named = by_stem(files)
            chosen = [rows[named[stem(scan)]] if stem(scan) in named else None for scan in scans]
            reason = "has the name of"
        else:
            numbered = by_number(files)
            wanted = [number + camera.number_offset for number in by_number(scans)]
            chosen = [rows[numbered[number]] if number in numbered else None for number in wanted]
            reason = f"has the number {'plus ' + str(camera.number_offset) if camera.number_offset else 'of'}"
    missing = [scan for scan, row in zip(scans, chosen, strict=True) if row is None]
    if missing and (len(missing) == len(scans) or not matching.skip_missing):
        raise DataError(
            f"{where}: no image of {folder / camera.files} {reason} {missing[0]} ({len(missing)} of {len(scans)} scans "
            "lack one); correct `matching:`, or, if images may be missing, add `missing_images: skip` there"
        )
    images = [None if row is None else files[row] for row in chosen]
    known = np.array([np.nan if row is None or times is None else times[row] for row in chosen])
    return Partners(images, known)


def _nearest(scan_times: Matrix, times: Matrix, most: float) -> list[int | None]:
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    after = np.clip(np.searchsorted(ordered, scan_times), 1, max(len(ordered) - 1, 1))
    if len(ordered) == 1:
        best = np.zeros(len(scan_times), dtype=np.intp)
    else:
        best = np.where(scan_times - ordered[after - 1] <= ordered[after] - scan_times, after - 1, after)
    near = np.abs(ordered[best] - scan_times) <= most
    return [int(order[row]) if good else None for row, good in zip(best, near, strict=True)]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Poses of a body over time. times [P]: seconds, rising; positions [P, 3]: metres; quaternions [P, 4]: w x y z."""

    path: Path
    times: Matrix
    positions: Matrix
    quaternions: Matrix

    def at(self, time: float) -> Matrix:
        """From the body to the world [4, 4] at `time`: positions linearly, rotations along the great circle (slerp).

        Raises DataError more than POSE_GAP outside the poses, or inside a longer gap.
        """
        after = int(np.clip(np.searchsorted(self.times, time), 1, len(self.times) - 1))
        first, last = self.times[after - 1], self.times[after]
        if time < first - POSE_GAP or time > last + POSE_GAP or (first < time < last and last - first > POSE_GAP):
            raise DataError(
                f"{self.path}: there is no pose within {POSE_GAP:g} s of the time {time:.6f} "
                f"(poses from {self.times[0]:.6f} to {self.times[-1]:.6f}); check the clocks and `time_unit`"
            )
        share = (time - first) / (last - first)
        position = (1 - share) * self.positions[after - 1] + share * self.positions[after]
        quaternion = slerp(self.quaternions[after - 1], self.quaternions[after], share)
        return rigid(quaternion_to_rotation(quaternion, str(self.path)), position)


def slerp(first: Matrix, last: Matrix, share: float) -> Matrix:
    """Between unit quaternions [4], the shorter way round. Source: Shoemake, "Animating rotation with quaternion
    curves" (1985); `share` outside [0, 1] carries the rotation on."""
    cosine = float(first @ last)
    if cosine < 0:
        last, cosine = -last, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-6:
        straight: Matrix = (1 - share) * first + share * last
        return straight
    curved: Matrix = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * last) / np.sin(angle)
    return curved


def read_tum(path: Path, where: str) -> Trajectory:
    """A trajectory in the format of the TUM RGB-D benchmark: lines `time x y z qx qy qz qw`, seconds, metres.

    Raises DataError, with the line, for anything else, fewer than two poses, or times that do not rise.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(_text(path, where).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"{path}, line {number}"
        if len(words) != 8 or not all(map(_is_time, words)):
            raise DataError(f"{place}: expected `time x y z qx qy qz qw`, got {line!r}")
        values = [float(word) for word in words]
        if rows and values[0] <= rows[-1][0]:
            raise DataError(f"{place}: the time {words[0]} is not after the one before; sort the lines")
        x, y, z, w = values[4:]
        rotation = quaternion_to_rotation([w, x, y, z], place)
        rows.append([*values[:4], *rotation_to_quaternion(rotation)])
    if len(rows) < 2:
        raise DataError(f"{path} holds {len(rows)} poses; at least two are needed")
    table = np.array(rows)
    return Trajectory(path, table[:, 0], table[:, 1:4], table[:, 4:])
