"""Which scenes of nuScenes belong to which split.

Sources: nuscenes-devkit 1.2.0, utils/splits.py, for the official ones; SLidR (valeoai/SLidR at 003d438,
pretrain/dataloader_nuscenes.py and downstream/dataloader_nuscenes.py) for `parametrizing` and `verifying`, which cut
the training split in two: choices are made on the 100 scenes of the latter, so that the validation split is kept for
the end.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clever3d.errors import DataError, InputError

# Numbers of the scenes; 1-3 stands for 1, 2, 3.
_TRAIN_DETECT = """
    1-2 41-76 161-168 170-176 190-196 199-200 202-204 206-214 254-264 283-306 315-318 321 323-324 347-375 382
    420-439 457-459 461-465 467-469 471-472 474-480 566 568 570-578 580 582-583 665-679 681 683-689 739-741 744
    746-747 749-752 757-765 767-769 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-991
    1011-1025 1074-1102 1104-1105"""
_TRAIN_TRACK = """
    4-11 19-34 120-135 138-139 149-152 154-155 157-160 177-185 187-188 218-220 222 224-253 328 376-381 383-386
    388-403 405-408 410-419 440-456 499-502 504-515 517-518 525-539 541-546 584-600 639-664 695-698 700-701
    703-719 726-728 730-731 733-738 786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 860-866 992
    994-1010 1044-1058 1106-1110"""
_VAL = """
    3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775
    777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"""
_TEST = """
    77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 833-842
    844-846 932-933 935-943 1026-1043"""
_VERIFYING = """
    8 9 19 29 32 42 45 49 52 54 56 66 67 73 131 152 166 168 183 190 194 208 210 211 241 243 248 259 260 261 287 292
    297 305 306 350 352 358 361 365 368 377 388 391 395 413 427 428 438 444 452 453 459 463 464 475 513 533 544 575
    587 589 642 652 658 669 678 687 701 703 706 710 715 726 735 740 758 786 790 804 806 847 856 868 882 897 899 976
    996 1012 1015 1016 1018 1020 1024 1044 1058 1094 1098 1107"""


def _numbers(text: str) -> frozenset[int]:
    ranges = [part.partition("-") for part in text.split()]
    return frozenset(number for first, _, last in ranges for number in range(int(first), int(last or first) + 1))


_TRAIN = _numbers(_TRAIN_DETECT) | _numbers(_TRAIN_TRACK)

#: Split -> the numbers of its scenes: 1 is `scene-0001`.
SPLITS: Mapping[str, frozenset[int]] = {
    "train": _TRAIN,
    "val": _numbers(_VAL),
    "test": _numbers(_TEST),
    "mini_train": _numbers("61 553 655 757 796 1077 1094 1100"),
    "mini_val": _numbers("103 916"),
    "train_detect": _numbers(_TRAIN_DETECT),
    "train_track": _numbers(_TRAIN_TRACK),
    "parametrizing": _TRAIN - _numbers(_VERIFYING),
    "verifying": _numbers(_VERIFYING),
}


def scenes_of(split: str | None, every: int, present: Sequence[str], tables: Path) -> list[int]:
    """Positions in `present`, the scenes' names in the order of their table, of the scenes of a split.

    split: a key of SPLITS, or of `splits.json` in the tables' folder (scene names by split, as nuscenes-devkit 1.2 has
    them), or None for all. Scenes of it that are not present are passed over.
    every: of these scenes the `every`-th, the 2 `every`-th, ...: SLidR's `dataset_skip_step`, which counts in the
    order of the table.

    Raises InputError for an unknown split or `every` < 1, DataError if no scene is left or `splits.json` is broken.
    """
    if every < 1:
        raise InputError(f"every={every}: give how many scenes go by for one that is taken, at least 1")
    wanted = set(present) if split is None else _names(split, tables)
    found = [position for position, name in enumerate(present) if name in wanted]
    if not found:
        few = ", ".join(present[:3]) + (", ..." if len(present) > 3 else "")
        raise DataError(
            f"{tables}: none of the {len(wanted)} scenes of split {split!r} is in it ({few}); choose another"
        )
    if not found[every - 1 :: every]:
        raise DataError(f"{tables}: {len(found)} scenes of split {split!r} are in it, so every={every} leaves none")
    return found[every - 1 :: every]


def _names(split: str, tables: Path) -> set[str]:
    if split in SPLITS:
        return {f"scene-{number:04d}" for number in SPLITS[split]}
    custom = _custom(tables / "splits.json")
    if split in custom:
        return set(custom[split])
    known = [*SPLITS, *custom]
    near = difflib.get_close_matches(split, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"nuscenes has no split {split!r} (it has: {', '.join(known)}){hint}")


def _custom(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    try:
        splits = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not isinstance(splits, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise DataError(f'{path} must hold lists of scene names by split: {{"mine": ["scene-0001", ...]}}')
    return splits
