"""Putting a trained checkpoint into the package: the file into ``zoo/weights/``, its record into the manifest.

    python -m clever3d.zoo.bundle best.safetensors record.json --alias minkunet-dinov2-s

``record.json`` has what the file cannot know: name, teacher, recipe, data, weights_licence, data_licence, metrics,
provenance. The rest (architecture, config, input spec, sizes, sha256, status, location) is taken from the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clever3d.io import atomic_path
from clever3d.zoo import manifest
from clever3d.zoo.checkpoint import file_sha256
from clever3d.zoo.loading import load_backbone
from clever3d.zoo.publish import complete_record


def add_bundled(checkpoint: str | Path, record: Mapping[str, Any], *, aliases: Sequence[str] = ()) -> None:
    """Adds a bundled checkpoint, or replaces the one of the same name. The same input gives the same manifest.

    Args:
        checkpoint: file written by ``save_checkpoint``.
        record: the fields of ``BackboneInfo`` that the checkpoint does not hold.
        aliases: short names that are to resolve to it, from now on.

    Raises:
        CheckpointError: the file does not load.
        DataError: the record would not be sound; nothing has been changed then.
    """
    checkpoint = Path(checkpoint)
    backbone = load_backbone(checkpoint)
    name = str(record["name"])
    whole = {
        **complete_record(backbone, record),
        "status": "bundled",
        "location": {"file": f"{name}.safetensors"},
        "sha256": file_sha256(checkpoint),
        "bytes": checkpoint.stat().st_size,
    }
    path = manifest.manifest_path()
    content = json.loads(path.read_text(encoding="utf-8"))
    others = [other for other in content["records"] if other["name"] != name]
    content["records"] = sorted([*others, whole], key=lambda one: str(one["name"]))
    content["aliases"] = dict(sorted({**content["aliases"], **dict.fromkeys(aliases, name)}.items()))
    manifest.parse_manifest(content)
    manifest.WEIGHTS_FOLDER.mkdir(exist_ok=True)
    target = manifest.WEIGHTS_FOLDER / f"{name}.safetensors"
    if checkpoint.resolve() != target.resolve():
        with atomic_path(target) as draft:
            shutil.copyfile(checkpoint, draft)
    with atomic_path(path) as draft:
        draft.write_text(manifest.format_manifest(content), encoding="utf-8")
    manifest.forget()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clever3d.zoo.bundle", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("record", type=Path, help="JSON file")
    parser.add_argument("--alias", action="append", default=[], help="short name that is to resolve to it")
    given = parser.parse_args()
    add_bundled(given.checkpoint, json.loads(given.record.read_text(encoding="utf-8")), aliases=given.alias)


if __name__ == "__main__":
    main()
