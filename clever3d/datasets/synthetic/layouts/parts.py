"""The unfinished data set on disk: each scene in a hidden folder of its own until all are whole.

    DIR/.synth/plan.json                  what was asked for, by which versions
    DIR/.synth/lock                       there, and locked, while a run is writing
    DIR/.synth/0003-1f0c....tmp/          scene 3, being written by the run 1f0c...
    DIR/.synth/0003/{files/,rows.json}    scene 3, whole: its files below their final names, its rows for the tables
    DIR/synth.json                        plan.json again, there once the data set is whole; `.synth` then goes

A folder becomes whole by one rename, so a run may be killed at any moment and another goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clever3d.datasets.synthetic.layouts.base import Rows, write_json
from clever3d.datasets.synthetic.layouts.lock import Lock
from clever3d.errors import DataError, InputError

HIDDEN, RECORD = ".synth", "synth.json"
_PLAN, _LOCK, _CLAIM = "plan.json", "lock", "claim"


class Parts:
    """The state of a data set in `root`; everything that fails on the disk is a DataError.

    A run calls `begin` first and `end` last. run: its name, for the drafts; its workers have Parts of the same name.
    """

    def __init__(self, root: Path, run: str = "") -> None:
        self.root, self.hidden, self.run = root, root / HIDDEN, run or uuid.uuid4().hex
        self._lock = Lock(self.hidden / _LOCK)
        self._made: list[Path] = []

    @property
    def is_whole(self) -> bool:
        return (self.root / RECORD).is_file()

    def begin(self, record: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folders, or find those of an earlier run with the same `record` if `resume` is set.

        Raises DataError if the folder is not empty without `resume`, was not begun by us, is being written by another
        run, or cannot be written; InputError if it was begun with another plan or by other versions.
        """
        with _disk(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise DataError(f"{self.root} is a file; give a folder that does not exist yet, or an empty one")
            if self.is_whole or (not self.hidden.is_dir() and self._is_begun()):
                self._go_on(record, resume)
                return
            for folder in (self.root, *self.root.parents):
                if folder.exists():
                    break
                self._made.append(folder)
            self._lock.take()
        try:
            with _disk(self.root):
                begun = self._is_begun()
                if begun:
                    self._go_on(record, resume)
                self._sweep()
            if not begun:
                write_json(self.hidden / _PLAN, record, indent=2)
        except BaseException:
            self._leave()
            raise

    def end(self) -> None:
        """Let the next run in. After a failure: if no scene is whole, leave the disk as it was found."""
        for draft in self.hidden.glob(f"*-{self.run}.tmp"):  # workers that were ended leave theirs
            shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            if {path.name for path in self.hidden.iterdir()} <= {_PLAN, _LOCK}:
                (self.hidden / _PLAN).unlink(missing_ok=True)
        self._leave()

    def scene(self, index: int) -> Path:
        """Where a scene is once it is whole."""
        return self.hidden / f"{index:04d}"

    def is_done(self, index: int) -> bool:
        return self.scene(index).is_dir()

    def count(self) -> int:
        """How many scenes of an unfinished data set are whole."""
        return sum(path.is_dir() and path.name.isdecimal() for path in self.hidden.glob("*"))

    def write(self, index: int, write: Callable[[Path], Rows]) -> None:
        """Write a scene with `write`, which gets the folder for its files; it is there whole or not at all."""
        target = self.scene(index)
        draft = target.with_name(f"{target.name}-{self.run}.tmp")
        try:
            with _disk(self.root):
                (draft / "files").mkdir(parents=True)
                (draft / _CLAIM).touch()
                write_json(draft / "rows.json", write(draft / "files"))
                # If our run is dead and another goes on, that has moved the draft away: what is here now is a rest.
                (draft / _CLAIM).unlink()
                if not target.exists():
                    draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):  # empty only if our run is dead, another has ended, and we made it anew
                self.hidden.rmdir()

    def rows(self, index: int) -> Rows:
        rows: Rows = _read_json(self.scene(index) / "rows.json")
        return rows

    def assemble(self, count: int, finish: Callable[[list[Rows]], None], record: Mapping[str, Any]) -> None:
        """Move the files of all scenes to their places, write what belongs to all, and take the hidden folder away.

        Does the rest if an earlier run was stopped in here.
        """
        if not self.is_whole:
            rows = [self.rows(index) for index in range(count)]
            with _disk(self.root):
                for index in range(count):
                    self._move(self.scene(index) / "files")
                finish(rows)
            write_json(self.root / RECORD, record, indent=2)
        shutil.rmtree(self.hidden, ignore_errors=True)

    def _move(self, files: Path) -> None:
        for path in sorted(files.rglob("*")):
            target = self.root / path.relative_to(files)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)

    def _leave(self) -> None:
        """Let go, and take away the folders that we have made or that an earlier run has left, if they are empty."""
        self._lock.release()
        with contextlib.suppress(OSError):
            for folder in (self.hidden, *self._made):
                folder.rmdir()

    def _is_begun(self) -> bool:
        """Whether the folder holds anything but what is left of runs that were stopped before they had a plan."""
        own = self.hidden.iterdir() if self.hidden.is_dir() else ()
        kept = [path for path in own if path.name != _LOCK and not _is_rest(path)]
        return bool(kept) or (self.root.is_dir() and any(path != self.hidden for path in self.root.iterdir()))

    def _go_on(self, record: Mapping[str, Any], resume: bool) -> None:
        """Raise if the run that has begun the folder is not one that we go on with."""
        if not resume:
            raise DataError(
                f"{self.root} is not empty; choose another folder, empty it, or go on with an unfinished run "
                "with --resume"
            )
        path = self.root / RECORD if self.is_whole else self.hidden / _PLAN
        if not path.is_file():
            raise DataError(f"{self.root} was not begun by clever3d synth (there is no {path}); choose another folder")
        differing = [
            f"{name} {before!r}, not {now!r}"
            for part in ("plan", "versions")
            for name, before, now in _differences(_read_json(path).get(part), record[part])
        ]
        if differing:
            raise InputError(
                f"{self.root} was begun with other arguments or versions: {'; '.join(differing)}. "
                "Repeat those, or choose another folder"
            )

    def _sweep(self) -> None:
        """Take away what stopped runs have left. The rename comes first, so that a worker that still lives notices."""
        for draft in self.hidden.glob("*.tmp"):
            with contextlib.suppress(OSError):
                draft.rename(draft.with_suffix(".trash"))
        for path in self.hidden.iterdir():
            if path.is_dir() and _is_rest(path):
                shutil.rmtree(path, ignore_errors=True)
            elif _is_rest(path):
                path.unlink(missing_ok=True)


def _is_rest(path: Path) -> bool:
    """Drafts, of scenes and of the plan."""
    return path.suffix in (".tmp", ".trash") or path.name.startswith(".plan-")


def _differences(before: object, now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    found: Mapping[str, Any] = before if isinstance(before, dict) else {}
    for name in {**now, **found}:
        if found.get(name) != now.get(name):
            yield name, found.get(name), now.get(name)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete the folder and begin again") from error


@contextlib.contextmanager
def _disk(root: Path) -> Iterator[None]:
    """What fails on the disk inside the block is a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        place = f" ({os.fspath(error.filename)})" if error.filename else ""
        raise DataError(f"{root} cannot be written: {why}{place}; mend that and go on with --resume") from error
