"""Speed of the embedded world: scans and images a minute and core, for each suite; seconds to build a scene.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py [--seed 1] [--place street] [--repeats 3]

Times are of the processor (one core), the median over repeats; the clock on the wall is given too. The first image of a
camera also computes its rays once; that is left out of the median and given as `first image`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from clever3d.datasets.synthetic import world
from clever3d.datasets.synthetic.places import build_scene
from clever3d.datasets.synthetic.truth import WorldFrame


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of the processor and of the clock."""
    spent = []
    for _ in range(repeats):
        processor, clock = time.process_time(), time.perf_counter()
        work()
        spent.append((time.process_time() - processor, time.perf_counter() - clock))
    return statistics.median(p for p, _ in spent), statistics.median(c for _, c in spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="street", choices=world.PLACES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "synthetic-speed.json")
    options = parser.parse_args()
    report: dict[str, object] = {
        "place": options.place,
        "seed": options.seed,
        "machine": platform.machine(),
        "cores": 1,
    }

    def build(place: str) -> tuple[float, float]:
        build_scene.cache_clear()
        return timed(lambda: build_scene(place, options.seed, world.LONGEST), 1)

    report["seconds to build a scene"] = {place: round(build(place)[0], 2) for place in world.PLACES}
    print(report["seconds to build a scene"], flush=True)
    build(options.place)
    for name in world.SENSORS:
        frames: list[WorldFrame] = []

        def scans(motion: bool, name: str = name, frames: list[WorldFrame] = frames) -> None:
            kept = world.simulate(name, place=options.place, seed=options.seed, frames=1, motion_distortion=motion)
            frames[:] = list(kept)

        still, moving = timed(lambda: scans(False), options.repeats), timed(lambda: scans(True), options.repeats)
        scans(False)
        row: dict[str, object] = {
            "points of a scan": len(frames[0].scan.xyz),
            "scans a minute": round(60 / still[0]),
            "scans a minute with motion distortion": round(60 / moving[0]),
        }
        shots = [frames[0].cameras[0], frames[0].cameras[-1]]
        for shot in shots:
            first = timed(lambda shot=shot: shot.render(), 1)  # type: ignore[misc]
            seconds = timed(lambda shot=shot: shot.render(), options.repeats)  # type: ignore[misc]
            row[f"{shot.name} {shot.size[0]}x{shot.size[1]}"] = {
                "seconds an image": round(seconds[0], 2),
                "images a minute": round(60 / seconds[0], 1),
                "first image": round(first[0], 2),
                "seconds on the wall": round(seconds[1], 2),
            }
        if name == "nuscenes":
            half = next(iter(world.simulate(name, place=options.place, seed=options.seed, frames=1, image_scale=0.5)))
            half.cameras[0].render()
            seconds = timed(half.cameras[0].render, options.repeats)
            row["CAM_FRONT 800x450"] = {
                "seconds an image": round(seconds[0], 2),
                "images a minute": round(60 / seconds[0], 1),
            }
        report[name] = row
        print(name, json.dumps(row), flush=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
