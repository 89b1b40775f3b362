"""Checks what is in a wheel: ``python .ci/check_wheel.py dist/clever3d-0.1.0-py3-none-any.whl``."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path, PurePosixPath

LARGEST = 20_000_000  # bytes; the bundled weights are at most half of it
WEIGHTS = "clever3d/zoo/weights/"
REQUIRED = (
    "clever3d/__init__.py",
    "clever3d/py.typed",
    "clever3d/weights_manifest.json",
    "clever3d/zoo/manifest.schema.json",
)


def complaints(wheel: Path) -> list[str]:
    """What is wrong with the wheel; empty when nothing is."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        found = [f"{name} is missing" for name in REQUIRED if name not in sizes]
        info = next(name.split("/")[0] for name in sizes if name.endswith(".dist-info/METADATA"))
        found += [
            f"{name} is missing"
            for name in (f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE")
            if name not in sizes
        ]
        if found:
            return found
        manifest = json.loads(archive.read("clever3d/weights_manifest.json"))
        recorded = {
            WEIGHTS + record["location"]["file"] for record in manifest["records"] if record["status"] == "bundled"
        }
        found += [f"{name} has no record" for name in sizes if name.startswith(WEIGHTS) and name not in recorded]
        for record in manifest["records"]:
            if record["status"] != "bundled":
                continue
            name = WEIGHTS + record["location"]["file"]
            if name not in sizes or hashlib.sha256(archive.read(name)).hexdigest() != record["sha256"]:
                found.append(f"{name} is missing or is not the manifest's")
    for name in sizes:
        inside = name.startswith("clever3d/") and (
            PurePosixPath(name).suffix == ".py" or name in REQUIRED or name.startswith(WEIGHTS)
        )
        if not inside and not name.startswith(f"{info}/"):
            found.append(f"{name} does not belong in the package")
    if sum(sizes.values()) > LARGEST:
        found.append(f"{sum(sizes.values()):,} bytes unpacked, more than {LARGEST:,}")
    return found


if __name__ == "__main__":
    wrong = complaints(Path(sys.argv[1]))
    sys.exit("\n".join(wrong) if wrong else 0)
