"""A YAML file whose mistakes are reported with line and field: unknown and double keys, wrong kinds of values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from clever3d.errors import DataError

#: What a template writes where only the user knows the value.
PLACEHOLDER = "FILL_IN"
#: Deeper nesting than this is no rig file (our choice); it also ends the walk over a file that contains itself.
_MAX_DEPTH = 12
#: Values that a file may come to, aliases written out: a few hundred bytes of aliases of aliases make millions.
_MAX_VALUES = 10_000


@dataclass(frozen=True)
class _Value:
    """One value: its line (from 1), the text it was written as (scalars), and what YAML makes of it."""

    line: int
    text: str | None
    value: Any


@dataclass(frozen=True)
class Section:
    """A mapping of the file. name: its place, such as ``cameras.front``; empty for the whole file."""

    path: Path
    name: str
    line: int
    values: dict[str, _Value] = field(repr=False)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def place(self, key: str) -> str:
        """The whole name of a key: ``cameras.front.files``."""
        return f"{self.name}.{key}" if self.name else key

    def line_of(self, key: str) -> int:
        """The line of a key, or of the section where the key is absent."""
        return self.values[key].line if key in self.values else self.line

    def where(self, key: str) -> str:
        """Beginning of an error about `key`: file, line, field."""
        return f"{self.path}, line {self.line_of(key)}: {self.place(key)}"

    def fail(self, key: str, message: str) -> NoReturn:
        """Raises DataError about `key`."""
        raise DataError(f"{self.where(key)}: {message}")

    def only(self, known: Collection[str]) -> Section:
        """This section, if it has no other keys than `known`; else a DataError with the nearest one."""
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                self.fail(key, f"there is no such key; {hint}")
        return self

    def require(self, key: str, example: str) -> None:
        """Raises DataError unless the key is there; `example` is a line that would do."""
        if key not in self.values or self.values[key].value is None:
            begin = f"{self.path}, line {self.line_of(key)}: {self.place(key)}"
            raise DataError(f"{begin} is missing; write for example `{example}`")

    def section(self, key: str) -> Section | None:
        """The mapping under `key`, or None where there is none."""
        entry = self.values.get(key)
        if entry is None or entry.value is None:
            return None
        if not isinstance(entry.value, dict):
            self.fail(key, f"expected indented `key: value` lines below it, got {entry.value!r}")
        return Section(self.path, self.place(key), entry.line, entry.value)

    def text(self, key: str, default: str | None = None) -> str | None:
        """The value of `key` as it is written."""
        entry = self.values.get(key)
        if entry is None or entry.value is None:
            return default
        if entry.text is None:
            self.fail(key, "expected one piece of text")
        return entry.text

    def choice(self, key: str, options: Collection[str], default: str) -> str:
        """One of `options`."""
        text = self.text(key, default)
        assert text is not None
        if text not in options:
            near = difflib.get_close_matches(text, options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.fail(key, f"{text!r} is none of {', '.join(options)}{hint}")
        return text

    def number(self, key: str, default: float, *, above: float = -math.inf, least: float = -math.inf) -> float:
        """A finite number, larger than `above`, at least `least`."""
        entry = self.values.get(key)
        if entry is None or entry.value is None:
            return default
        number = as_number(entry.value)
        if number is None or number <= above or number < least:
            bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
            self.fail(key, f"{entry.text or entry.value!r} is not a number{bound}")
        return number

    def whole(self, key: str, default: int | None, *, least: int) -> int | None:
        """A whole number of at least `least`."""
        entry = self.values.get(key)
        if entry is None or entry.value is None:
            return default
        if isinstance(entry.value, bool) or not isinstance(entry.value, int) or entry.value < least:
            self.fail(key, f"{entry.text or entry.value!r} is not a whole number of at least {least}")
        return entry.value

    def numbers(self, key: str, example: str) -> list[Any]:
        """A list of numbers, or a list of such lists, as floats."""
        self.require(key, f"{key}: {example}")
        raw = self.values[key].value
        if not isinstance(raw, list):
            self.fail(key, f"expected a list such as {example}, got {raw!r}")
        return [self._one(key, item, example) for item in raw]

    def _one(self, key: str, item: Any, example: str) -> Any:
        if isinstance(item, list):
            return [self._one(key, inner, example) for inner in item]
        number = as_number(item)
        if number is None:
            self.fail(key, f"{item!r} is no finite number; expected {example}")
        return number


def as_number(value: Any) -> float | None:
    """A finite float, or None. Text counts when it reads as one: YAML 1.1 takes `1e-5`, without a point, for text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class _Loader(yaml.SafeLoader):
    values = 0  # made so far


def read_yaml(path: Path) -> Section:
    """The mapping that a YAML file holds, its plain data only, as `yaml.safe_load` would give it.

    Raises DataError, with the line, for text that is no YAML, a key that stands twice, or values still to be filled in.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as such") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        row = text.count("\n", 0, error.position) + 1
        raise DataError(
            f"{path}, line {row}: the character U+{ord(text[error.position]):04X} may not stand in YAML; remove it"
        ) from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise DataError(f"{path} is empty; `clever3d rig new FOLDER` writes a template")
        if not isinstance(node, yaml.MappingNode):
            raise DataError(f"{path}, line 1: expected `key: value` lines; `clever3d rig new FOLDER` writes a template")
        root = Section(path, "", 1, _mapping(loader, node, path, "", 0))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{line}: this is no YAML ({error.problem or error.context})") from error
    except DataError:
        raise  # it is a ValueError too
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: this is no YAML ({error})") from error
    finally:
        loader.dispose()
    if open_fields := list(_placeholders(root)):
        raise DataError(f"{path}: fill in {', '.join(open_fields)}: only you know what stands there as {PLACEHOLDER}")
    return root


def _mapping(loader: Any, node: yaml.MappingNode, path: Path, place: str, depth: int) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or depth > _MAX_DEPTH:
            raise DataError(f"{path}, line {line}: {place or 'the file'}: expected `key: value` lines")
        key = str(key_node.value)
        name = f"{place}.{key}" if place else key
        if key in values:
            raise DataError(f"{path}, line {line}: {name} stands here a second time (first in line {values[key].line})")
        text = value_node.value if isinstance(value_node, yaml.ScalarNode) else None
        values[key] = _Value(line, text, _plain(loader, value_node, path, name, depth + 1))
    return values


def _plain(loader: Any, node: yaml.Node, path: Path, place: str, depth: int) -> Any:
    loader.values += 1
    if loader.values > _MAX_VALUES:
        line = node.start_mark.line + 1
        raise DataError(f"{path}, line {line}: {place} comes to more than {_MAX_VALUES:,} values; write fewer aliases")
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, place, depth)
    if isinstance(node, yaml.SequenceNode):
        if depth > _MAX_DEPTH:
            raise DataError(f"{path}, line {node.start_mark.line + 1}: {place} is nested too deeply")
        return [_plain(loader, item, path, place, depth + 1) for item in node.value]
    return loader.construct_object(node, deep=True)


def _placeholders(section: Section) -> Iterator[str]:
    for key, entry in section.values.items():
        below = section.section(key) if isinstance(entry.value, dict) else None
        if below is not None:
            yield from _placeholders(below)
        elif any(PLACEHOLDER in str(part) for part in _flat(entry.value)):
            yield f"{section.place(key)} (line {entry.line})"


def _flat(value: Any) -> list[Any]:
    return [part for item in value for part in _flat(item)] if isinstance(value, list) else [value]
