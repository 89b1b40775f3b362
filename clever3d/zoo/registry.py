"""Looking up names: exact, by pattern, and the nearest ones of a name that does not exist."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from clever3d.errors import InputError, UnknownNameError
from clever3d.zoo.manifest import read_manifest
from clever3d.zoo.records import LOCATION_KEYS, BackboneInfo

_LICENCE_WORDS = {"commercial": True, "non-commercial": False}


def list_backbones(
    pattern: str = "*", *, status: str | None = None, teacher: str | None = None, licence: str | None = None
) -> list[str]:
    """Full names of the zoo's backbones, sorted.

    Args:
        pattern: shell pattern (``*``, ``?``, ``[]``). It is held against the full names and the short ones; what is
            returned is always the full name, once.
        status: only those that are ``bundled``, ``hub``, ``external`` or ``recipe``.
        teacher: only those of this teacher: a pattern, or a part, of timm's name of it
            (``vit_base_patch14_dinov2.lvd142m``) or of the name's middle (``dinov2_b``).
        licence: only those whose weights have this licence: a pattern, or a part, of its name (``apache-2.0``), or
            ``commercial`` or ``non-commercial`` for what it allows by its name; a licence that is not known is neither.

    Raises:
        InputError: ``status`` is none of these.
    """
    if status is not None and status not in LOCATION_KEYS:
        raise InputError(f"status={status!r} is none of {', '.join(LOCATION_KEYS)}.")

    def wanted(info: BackboneInfo) -> bool:
        middle = info.name.split("-", 1)[1].split(".")[0]
        return (
            any(fnmatchcase(known, pattern) for known in (info.name, *info.aliases))
            and status in (None, info.status)
            and (teacher is None or _like(teacher, info.teacher["model"]) or _like(teacher, middle))
            and (licence is None or _has_licence(licence, info))
        )

    return sorted(info.name for info in read_manifest().records.values() if wanted(info))


def _has_licence(licence: str, info: BackboneInfo) -> bool:
    if licence in _LICENCE_WORDS:
        return info.commercial_use is _LICENCE_WORDS[licence]
    return _like(licence, info.weights_licence)


def _like(pattern: str, text: str) -> bool:
    """Whether a part of the text is the pattern, in either case; with ``*``, ``?`` or ``[`` all of it must fit."""
    whole = any(sign in pattern for sign in "*?[")
    return fnmatchcase(text.lower(), pattern.lower() if whole else f"*{pattern.lower()}*")


def backbone_info(name: str) -> BackboneInfo:
    """What is known of a backbone, without building it or importing torch; ``print`` it to read it.

    Args:
        name: full or short name.

    Raises:
        UnknownNameError: no such name; the message has the nearest ones.
    """
    info = find(name)
    if info is None:
        raise UnknownNameError(f"No backbone is named {name!r}. {suggestion(name)}")
    return info


def find(name: str) -> BackboneInfo | None:
    """The entry with that full or short name, or None."""
    manifest = read_manifest()
    return manifest.records.get(manifest.aliases.get(name, name))


def suggestion(name: str) -> str:
    """The end of an error message about an unknown name."""
    manifest = read_manifest()
    known = {spelling: spelling for spelling in (*manifest.aliases, *manifest.records)}
    known.update({full.split(".")[0]: full for full in manifest.records})  # as one types it, without the tag
    close = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.6)
    near = list(dict.fromkeys(known[spelling] for spelling in close))[:3]
    did_you_mean = f"Did you mean {' or '.join(repr(one) for one in near)}? " if near else ""
    return f"{did_you_mean}clever3d.list_backbones() lists all names."


def nearest_with_weights(info: BackboneInfo) -> str | None:
    """The entry most like ``info`` that loads: the same teacher first, then the same spelling."""
    candidates = [other for other in read_manifest().records.values() if other.status in ("bundled", "hub")]

    def likeness(other: BackboneInfo) -> tuple[bool, float]:
        same_teacher = other.teacher["model"] == info.teacher["model"]
        return same_teacher, difflib.SequenceMatcher(None, other.name, info.name).ratio()

    return max(candidates, key=likeness).name if candidates else None
