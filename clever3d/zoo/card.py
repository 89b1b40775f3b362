"""The model card of a published backbone, made from its record and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clever3d.zoo.records import allows_commercial_use, printable

#: The Hub's identifiers of licences that have one; every other licence is "other" with its name beside it.
HUB_LICENCES = {
    licence.lower(): licence.lower()
    for licence in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0"),
        *("CC-BY-NC-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "CC-BY-ND-4.0"),
    )
}
_UNITS = {"voxel_size": " m", "point_range": " m", "ground_height": " m"}


def model_card(record: Mapping[str, Any], repository: str) -> str:
    """The card as Markdown with the Hub's metadata at its head.

    Args:
        record: a complete record (`clever3d.zoo.records.BackboneInfo` has the fields).
        repository: ``organisation/name``, for the lines that load it.
    """
    name, network = record["name"], f"{record['parameters'] / 1e6:.1f} M parameters"
    parts = [
        f"---\n{_front_matter(record)}\n---",
        f"# {name}",
        f"A LiDAR backbone of clever3d: a feature of {record['feature_dim']} numbers for every point of a point cloud. "
        f"{record['architecture']}, {network}; teacher {record['teacher']['model']}.",
        "## Use",
        _code(repository),
        "## Input",
        _table(("property", "value"), [(key, _plain(value) + _UNITS.get(key, "")) for key, value in _input(record)]),
        "Points are in the sensor's frame: x forward, y left, z up, in metres.",
        "## Training",
        _table(("", ""), _training(record)),
        "## Metrics",
        _metrics(record["metrics"]),
        "## Limits",
        _bullets(record["limits"]) or "Its author states none. That does not mean that there are none.",
        "## Licence",
        _licence(record),
        "## Provenance",
        _table(("", ""), list(dict(record["provenance"] or {"provenance": "not recorded"}).items())),
        "## Citation",
        _bullets(record["citation"]) or "None is given.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    licence = str(record["weights_licence"])
    known = HUB_LICENCES.get(licence.lower())
    named = None if known else re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    tags = ["lidar", "point-cloud", "feature-extraction", "distillation", "autonomous-driving", record["architecture"]]
    data = ModelCardData(license=known or "other", library_name="clever3d", tags=tags, license_name=named)
    return str(data.to_yaml()).strip()


def _code(repository: str) -> str:
    return "\n".join(
        (
            "```python",
            "import clever3d",
            "",
            f'backbone = clever3d.load_backbone("hf-hub:{repository}")',
            'scan = clever3d.read_points("scan.bin")',
            "points = backbone.extract(scan.xyz, scan.intensity)",
            "points.features  # one row per input point, in input order",
            "```",
        )
    )


def _input(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in record["input_spec"].items() if value not in (None, "", [], ())]


def _training(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    teacher = record["teacher"]
    return [
        ("teacher", f"{teacher['model']}, from {teacher['source']} ({teacher['licence']})"),
        ("recipe", record["recipe"]),
        *[("data", data) for data in record["data"]],
        *([("command", record["make"])] if record["make"] else []),
    ]


def _metrics(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return "None were measured."
    rows = [(metric["name"], metric["value"], metric["protocol"]) for metric in metrics]
    return _table(("metric", "value", "protocol"), rows)


def _licence(record: Mapping[str, Any]) -> str:
    text = f"Weights: {record['weights_licence']}. Training data: {record['data_licence']}."
    if allows_commercial_use(str(record["weights_licence"])) is False:
        text += " **For non-commercial use only.**"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return printable(_plain(value)).replace("|", "\\|")


def _plain(value: Any) -> str:
    return ", ".join(_plain(one) for one in value) if isinstance(value, (list, tuple)) else str(value)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {printable(line)}" for line in lines)
