"""How well `clever3d rig check` tells right calibrations from wrong ones, on rigs of real frames.

Builds rig folders of the frames in DATA and DATA_MORE (layout: see tests/rig_frames.py), puts one fault after the other
into each (tests/rig_faults.py), checks five frames of each, and prints a table: cameras that were given the right
finding, of all, and after a plus those that were given another one. `--alarms N` also checks frames of the unchanged
rigs, drawn at random, N times for 1, 3 and 5 frames.

    python benchmarks/rig_check.py DATA DATA_MORE [--sets kitti_raw "drive 005"] [--faults "inverted"] [--alarms 60]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import rig_faults
import rig_frames

from clever3d.datasets import Rig
from clever3d.evaluate.calibration import check_rig
from clever3d.evaluate.calibration.survey import survey
from clever3d.evaluate.calibration.verdict import find

#: Sets of which frames can be drawn at random; the others have one frame.
DRAWN = ("kitti", "kitti_raw", "drive 001", "drive 005", "drive 027")
#: Sets whose frames follow each other, for images of the wrong moment; such with two cameras or more.
DRIVES = ("kitti_raw", "drive 001", "drive 005", "drive 027")
SEVERAL = ("kitti_stereo", "nuscenes", "sustechpoints")
#: Findings that say the score itself is too low, rather than what is wrong.
LOW = ("no agreement", "doubtful")

turned, moved = partial(partial, rig_faults.rotated), partial(partial, rig_faults.moved)
#: Fault -> what it does to a rig, and the finding that is right.
FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "scans turned 90 degrees": (rig_faults.scans_turned, "axes"),
    "scans with y up": (rig_faults.scans_y_up, "axes"),
    "scans mirrored": (rig_faults.scans_mirrored, "mirrored"),
    "`axes` turned": (rig_faults.letters_turned, "axes"),
    "`axes` tilted": (rig_faults.letters_tilted, "axes"),
    "extrinsics inverted": (rig_faults.inverted, "inverted"),
    "translation in mm": (rig_faults.translation_in_mm, "unit"),
    "scans in mm": (rig_faults.scans_in_mm, "unit"),
    "quaternion x, y, z, w": (rig_faults.quaternion_order, "quaternion"),
    "images halved": (partial(rig_faults.images_halved, say_so=False), "image size"),
    "images and `image_size` halved": (partial(rig_faults.images_halved, say_so=True), "image size"),
    "focal length 1.25 times": (rig_faults.focal_wrong, "focal length"),
    "focal length 0.85 times": (partial(rig_faults.focal_wrong, factor=0.85), "focal length"),
    "images 1 frame late": (partial(rig_faults.images_late, frames=1), "time offset"),
    "images 2 frames late": (partial(rig_faults.images_late, frames=2), "time offset"),
    "images 1 frame early": (partial(rig_faults.images_late, frames=-1), "time offset"),
    "two cameras' images swapped": (rig_faults.cameras_swapped, "swapped cameras"),
    "rotated 1 degree right": (turned(right=1), "rotation"),
    "rotated 1 degree down": (turned(down=1), "rotation"),
    "rotated 2 degrees right": (turned(right=2), "rotation"),
    "rotated 2 degrees up": (turned(down=-2), "rotation"),
    "rolled 2 degrees": (turned(roll=2), "rotation"),
    "rolled 3 degrees": (turned(roll=3), "rotation"),
    "moved 0.2 m down": (moved(down=0.2), "translation"),
    "moved 0.5 m right": (moved(right=0.5), "translation"),
    "moved 0.5 m forward": (moved(forward=0.5), "translation"),
    "moved 1 m forward": (moved(forward=1.0), "translation"),
}


def cell(build: Callable[[Path], Any], name: str, fault: str | None) -> str:
    """One cell of the table: cameras with the right finding, of all; after a plus, cameras that got another warning.

    ``rig``: the right one is said of the whole rig.
    """
    damage, right = FAULTS[fault] if fault else (None, "")
    if (right == "time offset" and name not in DRIVES) or (right == "swapped cameras" and name not in SEVERAL):
        return "-"
    with tempfile.TemporaryDirectory() as folder:
        rig = build(Path(folder))
        if damage is not None:
            damage(rig)
        report = check_rig(Rig(rig.write()))
    findings = [one for one in report.findings if one.level != "note"]
    count = 2 if right == "swapped cameras" else len(report.cameras)
    if fault is None:
        return f"{len({one.camera for one in findings})}/{count}"
    good = {one.camera for one in findings if one.fault == right}
    if None in good:
        return "rig"
    others = {one.camera for one in findings if one.camera} - good
    return f"{len(good)}/{count}" + (f" +{len(others)}" if others else "")


def alarms(builders: dict[str, Callable[[Path], Any]], frames: int, runs: int) -> None:
    """Random frames of right calibrations: warnings, and the lowest scores."""
    draw = random.Random(frames)
    scores: list[float] = []
    alarmed, notes = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        rigs = {name: Rig(builders[name](Path(folder) / name).write()) for name in DRAWN if name in builders}
        for run in range(runs):
            name = list(rigs)[run % len(rigs)]
            found = survey(rigs[name], sorted(draw.sample(range(len(rigs[name])), frames)))
            scores += [one.given.z for one in found.cameras.values() if one.given is not None]
            findings = find(found)
            warned = [one for one in findings if one.level != "note"]
            alarmed += bool(warned)
            notes += any(one.fault in LOW for one in findings) and not warned
            for one in warned:
                print(f"  {name}, {[frame.id for frame in found.frames]}: {one.fault}: {one.text}", flush=True)
    low = ", ".join(f"{score:.1f}" for score in sorted(scores)[:5])
    print(f"{frames} frames: {alarmed} of {runs} runs with a false alarm, {notes} with a note; lowest scores {low}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("more", type=Path)
    parser.add_argument("--sets", nargs="+", help="names of rig_frames.everything; all if not given")
    parser.add_argument("--faults", nargs="*", help="words of faults; all if not given")
    parser.add_argument("--alarms", type=int, default=0, metavar="RUNS", help="random draws for 1, 3 and 5 frames each")
    options = parser.parse_args()
    builders = rig_frames.everything(options.data, options.more)
    if unknown := set(options.sets or ()) - set(builders):
        parser.error(f"--sets {sorted(unknown)}: known are {', '.join(builders)}")
    builders = {name: build for name, build in builders.items() if name in (options.sets or builders)}
    start = time.monotonic()
    for frames in (1, 3, 5) if options.alarms else ():
        alarms(builders, frames, options.alarms)
    words = options.faults
    rows = [fault for fault in FAULTS if words is None or any(word in fault for word in words)]
    if rows:
        print("| fault | " + " | ".join(builders) + " |\n|" + "---|" * (len(builders) + 1), flush=True)
    for fault in (None, *rows) if rows else ():
        cells = (cell(build, name, fault) for name, build in builders.items())
        print(f"| {fault or 'none: false alarms'} | " + " | ".join(cells) + " |", flush=True)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
