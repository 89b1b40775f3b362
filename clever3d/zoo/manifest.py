"""The manifest: the package's own ``weights_manifest.json``, and those of one's organisation. No torch.

A manifest is ``{"format", "aliases": {short: name}, "records": [...]}``; the fields of a record are those of
`BackboneInfo`, all of them required (``manifest.schema.json`` says the same to other programs). ``CLEVER3D_MANIFEST``
names further manifests, separated as in ``PATH``; what is ``bundled`` there lies beside them.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clever3d.errors import DataError
from clever3d.zoo.records import RECORD_FIELDS, BackboneInfo, parse_record

FORMAT = "clever3d.manifest.v1"
MANIFEST_NAME = "weights_manifest.json"
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
VARIABLE = "CLEVER3D_MANIFEST"


@dataclass(frozen=True)
class Manifest:
    """The records by name, and the short names."""

    records: Mapping[str, BackboneInfo]
    aliases: Mapping[str, str]


def manifest_path() -> Path:
    """The package's own manifest: inside an installed package, or at the top of a source checkout."""
    package = Path(__file__).parents[1]
    inside = package / MANIFEST_NAME
    return inside if inside.is_file() else package.parent / MANIFEST_NAME


def manifest_paths() -> list[Path]:
    """The package's own manifest and those that ``CLEVER3D_MANIFEST`` names."""
    others = [Path(one).expanduser() for one in os.environ.get(VARIABLE, "").split(os.pathsep) if one]
    return [manifest_path(), *others]


def weights_folder(info: BackboneInfo) -> Path:
    """Where the bundled file of an entry lies: in the package, or beside the manifest that names it."""
    return WEIGHTS_FOLDER if info.manifest in (None, manifest_path()) else info.manifest.parent


def read_manifest() -> Manifest:
    """All manifests in force as one, each read once.

    Raises:
        DataError: a file is missing, a record is malformed, or two have the same name; the message names them.
    """
    return _merged(tuple(manifest_paths()))


@functools.lru_cache(maxsize=8)
def _merged(paths: tuple[Path, ...]) -> Manifest:
    records: dict[str, BackboneInfo] = {}
    aliases: dict[str, str] = {}
    for path in paths:
        one = _read(path)
        taken = {*records, *aliases} & {*one.records, *one.aliases}
        if taken:
            name = min(taken)
            raise DataError(
                f"{path} has the name {name!r}, and so has another manifest in force "
                f"({', '.join(str(other) for other in paths if other != path)}). Give it another tag or alias."
            )
        records.update(one.records)
        aliases.update(one.aliases)
    return Manifest(records, aliases)


def _read(path: Path) -> Manifest:
    own = path == manifest_path()
    remedy = "the installation is damaged: install clever3d again" if own else f"it is named in {VARIABLE}: mend that"
    try:
        return parse_manifest(parse_json(path.read_text(encoding="utf-8")), path)
    except OSError as error:
        raise DataError(f"The manifest {path} cannot be read ({error.strerror}); {remedy}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"The manifest {path} is no UTF-8 text ({error.reason}); {remedy}.") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except ValueError as error:
        raise DataError(f"The manifest {path} is not valid JSON ({error}); {remedy}.") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key stand twice, and the last one would win silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} stands there twice in one object")
    return found


def parse_json(text: str) -> Any:
    """`json.loads` that raises ValueError for all that is no sound JSON: keys that stand twice, nesting without end."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def forget() -> None:
    """Makes the next `read_manifest` read the files again."""
    _merged.cache_clear()


def format_manifest(content: Mapping[str, Any]) -> str:
    """The manifest as text: fields in the order of `BackboneInfo`, so that a change shows as a small diff."""
    return format_json({**content, "records": [ordered(record) for record in content["records"]]})


def ordered(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its fields in the order of `BackboneInfo`."""
    return dict(sorted(record.items(), key=lambda item: RECORD_FIELDS.index(item[0])))


def format_json(content: Any) -> str:
    """JSON for people: two spaces, and lists of plain values on one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # No string of JSON holds a bare line break, so no value is touched.
    return re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", text)


def parse_manifest(content: Any, path: Path | None = None) -> Manifest:
    """Checks a manifest read from JSON, and gives it types.

    Raises:
        DataError: it is of another format, or a record, an alias or a name is not as it must be.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"The manifest is not of the format {FORMAT!r}. Install a matching clever3d.")
    if set(content) != {"format", "aliases", "records"}:
        raise DataError(f"The manifest has the keys format, aliases, records, not {sorted(content)}.")
    aliases, raw_records = content["aliases"], content["records"]
    texts = isinstance(aliases, dict) and all(isinstance(name, str) for name in aliases.values())
    if not texts or not isinstance(raw_records, list):
        raise DataError("The manifest's aliases are a JSON object of texts, its records a list.")
    records: dict[str, BackboneInfo] = {}
    for raw in raw_records:
        info = parse_record(raw, aliases, path)
        if info.name in records:
            raise DataError(f"The manifest has two records named {info.name!r}.")
        records[info.name] = info
    for alias, name in aliases.items():
        if name not in records:
            raise DataError(f"The manifest's alias {alias!r} points at {name!r}, which has no record.")
        if alias in records:
            raise DataError(f"The manifest's alias {alias!r} is also the name of a record.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", alias):
            raise DataError(f"The manifest's alias {alias!r} has other signs than letters, digits and _ . - in it.")
    return Manifest(records, aliases)
