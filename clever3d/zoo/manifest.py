"""The manifest: one record per checkpoint, read and checked without torch.

``weights_manifest.json`` is ``{"format", "aliases": {short: name}, "records": [...]}``; the fields of a record are
those of `BackboneInfo`, all of them required.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clever3d.errors import DataError

FORMAT = "clever3d.manifest.v1"
MANIFEST_NAME = "weights_manifest.json"
WEIGHTS_FOLDER = Path(__file__).parent / "weights"

# What each status needs in `location`. `recipe` has no weights, hence no place.
LOCATION_KEYS: dict[str, set[str]] = {
    "bundled": {"file"},  # relative to WEIGHTS_FOLDER
    "hub": {"hub", "commit", "file"},  # a Hugging Face repository at one commit
    "external": {"url"},  # published by others, in their own format
    "recipe": set(),
}

_STATUS_MEANS = {
    "bundled": "bundled: the weights are part of this package",
    "hub": "hub: downloaded on first use, at a pinned commit",
    "external": "external: published elsewhere, in its own format",
    "recipe": "recipe: nobody has trained it yet",
}


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of one entry of the zoo, without building it.

    Attributes:
        name: ``architecture-teacher.tag``.
        architecture: key of ``clever3d.backbones.ARCHITECTURES``.
        config: the architecture's settings, as JSON values.
        input_spec: what the network expects of its points, as JSON values (``InputSpec.to_dict``).
        feature_dim: length of a point's feature.
        parameters: number of trainable parameters.
        teacher: ``model`` (timm's name), ``source`` (where the weights came from), ``licence``.
        recipe: how it is trained, in one line.
        data: the data sets it is trained on.
        weights_licence: licence of the weights; for a recipe, the one that weights made from this data would carry.
        data_licence: licence of the training data.
        status: ``bundled``, ``hub``, ``external`` or ``recipe`` (nobody has trained it yet).
        location: ``{"file"}``, ``{"hub", "commit", "file"}``, ``{"url"}`` or None.
        sha256: of the weight file; None for a recipe.
        bytes: size of the weight file; None for a recipe.
        metrics: measured results, each with ``name``, ``value``, ``protocol``.
        provenance: ``revision`` (git), ``steps``, ``seed``, ``date``, ``command``; None for a recipe.
        make: the command that trains it; None where the provenance has it.
        aliases: short names that resolve to this entry (from the manifest's ``aliases``, not part of the record).
    """

    name: str
    architecture: str
    config: Mapping[str, Any]
    input_spec: Mapping[str, Any]
    feature_dim: int
    parameters: int
    teacher: Mapping[str, str]
    recipe: str
    data: tuple[str, ...]
    weights_licence: str
    data_licence: str
    status: str
    location: Mapping[str, str] | None
    sha256: str | None
    bytes: int | None
    metrics: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any] | None
    make: str | None
    aliases: tuple[str, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether ``load_backbone(name)`` needs nothing from the user (a Hub entry needs the network once)."""
        return self.status in ("bundled", "hub")

    @property
    def non_commercial(self) -> bool:
        """Whether the licence of the weights forbids commercial use (an ``NC`` term of Creative Commons)."""
        return re.search(r"\bNC\b", self.weights_licence) is not None

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in the manifest (JSON values)."""
        record = asdict(self)
        del record["aliases"]
        return {**record, "data": list(self.data), "metrics": [dict(metric) for metric in self.metrics]}

    def __str__(self) -> str:
        size = "" if self.bytes is None else f", {self.bytes / 1e6:.1f} MB"
        rows = [
            ("also", ", ".join(self.aliases)),
            ("status", _STATUS_MEANS[self.status] + size),
            ("network", f"{self.architecture}, {self.parameters / 1e6:.1f} M parameters"),
            ("features", f"{self.feature_dim} per point"),
            ("input", ", ".join(f"{key} {_short(value)}" for key, value in self.input_spec.items() if value)),
            ("teacher", "{model} ({source}; {licence})".format_map(self.teacher)),
            ("recipe", self.recipe),
            ("data", "; ".join(self.data)),
            ("licence", f"weights {self.weights_licence}; data {self.data_licence}"),
            *[("metric", f"{m['name']} {m['value']} ({m['protocol']})") for m in self.metrics],
            ("trained", ", ".join(f"{key} {value}" for key, value in (self.provenance or {}).items())),
            ("sha256", self.sha256 or ""),
            ("make", self.make or ""),
        ]
        lines = [
            textwrap.fill(
                text,
                118,
                initial_indent=f"  {label:<9} ",
                subsequent_indent=" " * 12,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for label, text in rows
            if text
        ]
        return "\n".join([self.name, *lines])


@dataclass(frozen=True)
class Manifest:
    """The records by name, and the short names."""

    records: Mapping[str, BackboneInfo]
    aliases: Mapping[str, str]


def manifest_path() -> Path:
    """The manifest's file: inside an installed package, or at the top of a source checkout."""
    package = Path(__file__).parents[1]
    inside = package / MANIFEST_NAME
    return inside if inside.is_file() else package.parent / MANIFEST_NAME


def read_manifest() -> Manifest:
    """The manifest of this installation, read once.

    Raises:
        DataError: the file is missing or a record is malformed; the message names the record and the field.
    """
    return _read(manifest_path())


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Manifest:
    try:
        return parse_manifest(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the installation is incomplete. Install clever3d again.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Install clever3d again.") from None


def forget() -> None:
    """Makes the next `read_manifest` read the file again."""
    _read.cache_clear()


def format_manifest(content: Mapping[str, Any]) -> str:
    """The manifest as text: fields in the order of `BackboneInfo`, so that a change shows as a small diff."""
    order = [field.name for field in fields(BackboneInfo)]
    records = [dict(sorted(record.items(), key=lambda item: order.index(item[0]))) for record in content["records"]]
    text = json.dumps({**content, "records": records}, indent=2, ensure_ascii=False) + "\n"
    # Lists of plain values on one line. No string of JSON holds a bare line break, so no value is touched.
    return re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", text)


def parse_manifest(content: Any) -> Manifest:
    """Checks a manifest read from JSON, and gives it types."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"The manifest is not of the format {FORMAT!r}. Install a matching clever3d.")
    if set(content) != {"format", "aliases", "records"}:
        raise DataError(f"The manifest has the keys format, aliases, records, not {sorted(content)}.")
    aliases: dict[str, str] = content["aliases"]
    records: dict[str, BackboneInfo] = {}
    for raw in content["records"]:
        info = parse_record(raw, aliases)
        if info.name in records:
            raise DataError(f"The manifest has two records named {info.name!r}.")
        records[info.name] = info
    for alias, name in aliases.items():
        if name not in records:
            raise DataError(f"The manifest's alias {alias!r} points at {name!r}, which has no record.")
        if alias in records:
            raise DataError(f"The manifest's alias {alias!r} is also the name of a record.")
    return Manifest(records, aliases)


def parse_record(raw: Mapping[str, Any], aliases: Mapping[str, str]) -> BackboneInfo:
    """Checks one record.

    Raises:
        DataError: a field is missing, unknown, or contradicts the status.
    """
    name = str(raw.get("name", "(no name)"))
    expected = {field.name for field in fields(BackboneInfo)} - {"aliases"}
    missing, unknown = sorted(expected - raw.keys()), sorted(raw.keys() - expected)
    if missing or unknown:
        raise DataError(f"Manifest record {name!r}: missing fields {missing}, unknown fields {unknown}.")
    info = BackboneInfo(
        **{
            **raw,
            "data": tuple(raw["data"]),
            "metrics": tuple(raw["metrics"]),
            "aliases": tuple(sorted(alias for alias, target in aliases.items() if target == name)),
        }
    )
    for wrong in _contradictions(info):
        raise DataError(f"Manifest record {name!r}: {wrong}.")
    return info


def _contradictions(info: BackboneInfo) -> list[str]:
    """What a record claims that its status does not allow; empty when it is sound."""
    if info.status not in LOCATION_KEYS:
        return [f"status {info.status!r} is none of {', '.join(LOCATION_KEYS)}"]
    wrong = []
    if not re.fullmatch(r"[a-z0-9_]+-[a-z0-9_]+\.[a-z0-9_]+", info.name):
        wrong.append("the name is not of the form architecture-teacher.tag")
    if not info.name.startswith(f"{info.architecture}-"):
        wrong.append(f"the name does not begin with its architecture {info.architecture!r}")
    if set(info.location or {}) != LOCATION_KEYS[info.status]:
        keys = ", ".join(sorted(LOCATION_KEYS[info.status])) or "no place: nobody has trained it"
        wrong.append(f"location {info.location}, but a {info.status} record has there: {keys}")
    if set(info.teacher) != {"model", "source", "licence"}:
        wrong.append("the teacher has the keys model, source, licence")
    if any(set(metric) != {"name", "value", "protocol"} for metric in info.metrics):
        wrong.append("a metric has the keys name, value, protocol")
    if info.status == "recipe":
        if info.sha256 or info.bytes or info.metrics or info.provenance:
            wrong.append("a recipe has no weights, so no sha256, bytes, metrics or provenance")
        if not info.make:
            wrong.append("a recipe needs the command that makes it in 'make'")
    else:
        if not re.fullmatch(r"[0-9a-f]{64}", info.sha256 or "") or not info.bytes:
            wrong.append("weights need their sha256 (64 hexadecimal digits) and their size in bytes")
        if info.status != "external" and set(info.provenance or {}) < {"revision", "steps", "seed", "date", "command"}:
            wrong.append("our own weights need a provenance: revision, steps, seed, date, command")
    if info.status == "hub" and not re.fullmatch(r"[0-9a-f]{40}", (info.location or {}).get("commit", "")):
        wrong.append("a Hub repository is read only at a full commit (40 hexadecimal digits)")
    return wrong


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_short(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
