"""SemanticKitti: being written."""

from __future__ import annotations

from pathlib import Path

from clever3d.datasets.base import Dataset, Frame


class SemanticKitti(Dataset):
    name = "semantickitti"
    LAYOUT = "semantickitti: ?"

    def __init__(self, root: Path | str) -> None: ...

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Frame:
        raise IndexError(index)

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return False
