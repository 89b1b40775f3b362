"""One entry of the zoo: what its record holds, how it is checked, how it is printed. No torch."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clever3d.errors import DataError

#: What each status needs in `location`. `recipe` has no weights, hence no place.
LOCATION_KEYS: dict[str, set[str]] = {
    "bundled": {"file"},  # relative to the package's weights, or to the manifest of one's own
    "hub": {"hub", "commit", "file"},  # a Hugging Face repository at one commit
    "external": {"url", "layout"},  # published by others, in their own format
    "recipe": set(),
}
#: Formats of external weights that can be converted on loading.
LAYOUTS = ("valeoai",)

_STATUS_MEANS = {
    "bundled": "bundled: the weights are part of this package",
    "hub": "hub: downloaded on first use, at a pinned commit",
    "external": "external: published by others; downloaded from there and converted on first use",
    "recipe": "recipe: nobody has trained it yet",
}
_FREE = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
}
_NO_HASH = "not known here: the first download is recorded, and later ones are held to it"


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
        location: ``{"file"}``, ``{"hub", "commit", "file"}``, ``{"url", "layout"}`` or None.
        sha256: of the file at ``location``; None for a recipe, or where the publisher of external weights names none.
        bytes: size of that file; None as for ``sha256``.
        metrics: measured results, each with ``name``, ``value``, ``protocol``.
        limits: what it is known not to do well, or was not tried on; a sentence each.
        citation: papers, as one would cite them in a text.
        provenance: ``revision`` (git), ``steps``, ``seed``, ``date``, ``command``; None for a recipe.
        make: the command that trains it; None where the provenance has it.
        aliases: short names that resolve to this entry (from the manifest's ``aliases``, not part of the record).
        manifest: the file that the record was read from (not part of the record).
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
    limits: tuple[str, ...]
    citation: tuple[str, ...]
    provenance: Mapping[str, Any] | None
    make: str | None
    aliases: tuple[str, ...] = ()
    manifest: Path | None = None

    @property
    def has_weights(self) -> bool:
        """Whether ``load_backbone(name)`` needs nothing from the user but, for some, the network once."""
        return self.status != "recipe"

    @property
    def commercial_use(self) -> bool | None:
        """Whether the licence of the weights allows commercial use, by its name; None where the name is not known."""
        return allows_commercial_use(self.weights_licence)

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in the manifest (JSON values)."""
        record = {key: value for key, value in asdict(self).items() if key in RECORD_FIELDS}
        lists: dict[str, Any] = {key: list(record[key]) for key in ("data", "limits", "citation")}
        return {**record, **lists, "metrics": [dict(metric) for metric in self.metrics]}

    def __str__(self) -> str:
        size = "" if self.bytes is None else f", {self.bytes / 1e6:.1f} MB"
        rows = [
            ("also", ", ".join(self.aliases)),
            ("status", _STATUS_MEANS[self.status] + size),
            ("from", " ".join((self.location or {}).values()) if self.status in ("hub", "external") else ""),
            ("network", f"{self.architecture}, {self.parameters / 1e6:.1f} M parameters"),
            ("features", f"{self.feature_dim} per point"),
            ("input", ", ".join(f"{key} {_short(value)}" for key, value in self.input_spec.items() if value)),
            ("teacher", "{model} ({source}; {licence})".format_map(self.teacher)),
            ("recipe", self.recipe),
            ("data", "; ".join(self.data)),
            ("licence", f"weights {self.weights_licence}; data {self.data_licence}"),
            *[("metric", f"{m['name']} {m['value']} ({m['protocol']})") for m in self.metrics],
            *[("limit", limit) for limit in self.limits],
            *[("cite", paper) for paper in self.citation],
            ("trained", ", ".join(f"{key} {value}" for key, value in (self.provenance or {}).items())),
            ("sha256", self.sha256 or (_NO_HASH if self.status == "external" else "")),
            ("make", self.make or ""),
        ]
        return "\n".join([self.name, *(_wrapped(label, printable(text)) for label, text in rows if text)])


#: The fields of a record, in the order in which they are written.
RECORD_FIELDS = tuple(field.name for field in fields(BackboneInfo) if field.name not in ("aliases", "manifest"))


def allows_commercial_use(licence: str) -> bool | None:
    """Whether a licence allows commercial use, by its name; None where that is not known."""
    if re.search(r"\bNC\b|non-?commercial|research|academic", licence, re.IGNORECASE):
        return False
    return True if licence.lower() in _FREE else None


def printable(text: str) -> str:
    """A text on one line and without signs that a terminal would obey; records and repositories may be a stranger's."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def parse_record(raw: Any, aliases: Mapping[str, str], manifest: Path | None = None) -> BackboneInfo:
    """Checks one record.

    Raises:
        DataError: a field is missing, unknown, of another type, or contradicts the status.
    """
    name = str(raw.get("name", "(no name)")) if isinstance(raw, Mapping) else "(no name)"
    if not isinstance(raw, Mapping):
        raise DataError(f"Manifest record {name!r}: a record is a JSON object, not {raw!r}.")
    missing, unknown = sorted(set(RECORD_FIELDS) - raw.keys()), sorted(raw.keys() - set(RECORD_FIELDS))
    if missing or unknown:
        raise DataError(f"Manifest record {name!r}: missing fields {missing}, unknown fields {unknown}.")
    for key, (described, fits) in _TYPES.items():
        if not fits(raw[key]):
            raise DataError(f"Manifest record {name!r}: {key} is {described}, not {raw[key]!r}.")
    lists = {key: tuple(raw[key]) for key in ("data", "metrics", "limits", "citation")}
    own = tuple(sorted(alias for alias, target in aliases.items() if target == name))
    info = BackboneInfo(**{**raw, **lists, "aliases": own, "manifest": manifest})
    for wrong in _contradictions(info):
        raise DataError(f"Manifest record {name!r}: {wrong}.")
    return info


def known_part(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record from elsewhere that this version knows, in their order; newer ones may have more.

    Raises:
        DataError: a field is of another type than it should be.
    """
    known = {key: record[key] for key in RECORD_FIELDS if key in record}
    for key, value in known.items():
        described, fits = _TYPES[key]
        if not fits(value):
            raise DataError(f"the record's {key} is {described}, not {value!r}")
    return known


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and printable(value) == value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(one) for one in value)


def _is_metric(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"name", "value", "protocol"}
        and _is_text(value["name"])
        and _is_text(value["protocol"])
        and isinstance(value["value"], (int, float))
        and not isinstance(value["value"], bool)
    )


def _is_teacher(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"model", "source", "licence"}
        and all(map(_is_text, value.values()))
    )


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


#: What every field holds, in words and as a test. ``manifest.schema.json`` says the same to other programs.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("name", "architecture", "recipe", "weights_licence", "data_licence", "status"),
        ("a text of one line", _is_text),
    ),
    **dict.fromkeys(("feature_dim", "parameters"), ("a positive whole number", _is_count)),
    **dict.fromkeys(("config", "input_spec"), ("a JSON object", _is_object)),
    "teacher": ("an object of three texts, the keys model, source, licence", _is_teacher),
    "data": ("a list of texts, at least one", lambda value: _is_texts(value) and len(value) > 0),
    "metrics": (
        "a list of objects, the keys name, value (a number), protocol",
        lambda value: isinstance(value, list) and all(map(_is_metric, value)),
    ),
    **dict.fromkeys(("limits", "citation"), ("a list of texts", _is_texts)),
    "location": (
        "null or an object of texts",
        _or_null(lambda value: _is_object(value) and all(map(_is_text, value.values()))),
    ),
    "sha256": ("null or a text", _or_null(_is_text)),
    "bytes": ("null or a positive whole number", _or_null(_is_count)),
    "provenance": ("null or a JSON object", _or_null(_is_object)),
    "make": ("null or a text", _or_null(_is_text)),
}


def _contradictions(info: BackboneInfo) -> list[str]:
    """What a record claims that its status does not allow; empty when it is sound."""
    if info.status not in LOCATION_KEYS:
        return [f"status {info.status!r} is none of {', '.join(LOCATION_KEYS)}"]
    wrong = []
    if not re.fullmatch(r"[a-z0-9_]+-[a-z0-9_]+\.[a-z0-9_]+", info.name):
        wrong.append("the name is not of the form architecture-teacher.tag")
    if not info.name.startswith(f"{info.architecture}-"):
        wrong.append(f"the name does not begin with its architecture {info.architecture!r}")
    wrong += _wrong_place(info.status, dict(info.location or {}))
    if info.status == "recipe":
        if info.location is not None:
            wrong.append("location is null: nobody has trained it")
        if info.sha256 or info.bytes or info.metrics or info.provenance is not None:
            wrong.append("a recipe has no weights, so no sha256, bytes, metrics or provenance")
        if not info.make:
            wrong.append("a recipe needs the command that makes it in 'make'")
        return wrong
    known = info.sha256 is not None or info.bytes is not None or info.status != "external"
    if known and not (re.fullmatch(r"[0-9a-f]{64}", info.sha256 or "") and info.bytes):
        wrong.append("weights need their sha256 (64 hexadecimal digits) and their size in bytes")
    if info.status != "external" and not _is_provenance(info.provenance or {}):
        wrong.append(
            "our own weights need a provenance: revision, date, command (texts), steps (above 0), seed (a whole number)"
        )
    return wrong


def _is_provenance(provenance: Mapping[str, Any]) -> bool:
    seed = provenance.get("seed")
    return (
        all(_is_text(provenance.get(key)) for key in ("revision", "date", "command"))
        and _is_count(provenance.get("steps"))
        and isinstance(seed, int)
        and not isinstance(seed, bool)
    )


def _wrong_place(status: str, location: dict[str, str]) -> list[str]:
    if set(location) != LOCATION_KEYS[status]:
        keys = ", ".join(sorted(LOCATION_KEYS[status])) or "no place: nobody has trained it"
        return [f"location {location or None}, but a {status} record has there: {keys}"]
    wrong = []
    if "file" in location and not is_plain_path(location["file"]):
        wrong.append(f"file {location['file']!r} is no plain relative path (a/b.safetensors)")
    if "hub" in location and not is_repository(location["hub"]):
        wrong.append(f"hub {location['hub']!r} is no repository of the Hub (organisation/name)")
    if "commit" in location and not re.fullmatch(r"[0-9a-f]{40}", location["commit"]):
        wrong.append("a Hub repository is read only at a full commit (40 hexadecimal digits)")
    if "url" in location and not re.match(
        r"https://[^/\s]+/\S+$|http://(127\.0\.0\.1|localhost)(:\d+)?/", location["url"]
    ):
        wrong.append(f"url {location['url']!r} is no https address")
    if "layout" in location and location["layout"] not in LAYOUTS:
        wrong.append(f"layout {location['layout']!r} is none of {', '.join(LAYOUTS)}")
    return wrong


def is_plain_path(path: str) -> bool:
    """Whether a path stays below the folder it is joined to, on every system: no root, drive, ``..`` or backslash."""
    parts = path.split("/")
    return bool(path) and not re.search(r"[\\:\x00-\x1f]", path) and all(part not in ("", ".", "..") for part in parts)


def is_repository(repository: str) -> bool:
    """Whether a text is a repository id of the Hub: ``organisation/name``, nothing that could be a path."""
    part = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    return re.fullmatch(f"{part}/{part}", repository) is not None and not re.search(r"\.\.|--|\.git$", repository)


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        118,
        initial_indent=f"  {label:<9} ",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        between = ", " if any(isinstance(item, str) and " " in item for item in value) else " "
        return "[" + between.join(_short(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
