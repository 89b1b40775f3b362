"""Teacher features on disk: each image goes through the teacher once, whatever the number of epochs and processes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clever3d.distill.teachers import Teacher
from clever3d.errors import DataError

logger = logging.getLogger(__name__)


class FeatureCache:
    """Teacher features of image files, kept as float16 in `folder/<fingerprint>/<sha256>.safetensors`.

    Keys are contents, not names: a moved or copied image is a hit, a changed image or another teacher is a miss.
    Files appear whole or not at all, so any number of processes may share a folder; two that miss the same image at
    the same time both compute it and write the same file.
    """

    def __init__(self, folder: Path | str, teacher: Teacher) -> None:
        self.teacher = teacher
        self.folder = Path(folder) / teacher.fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, image_path: Path | str) -> Tensor:
        """The features [C, h, w], float16 on the CPU, of an image file; computed and stored on a miss.

        A cache file that cannot be used is computed again, with a warning. Raises DataError, with the path, for an
        image that cannot be read.
        """
        image_path = Path(image_path)
        try:
            data = image_path.read_bytes()
        except OSError as error:
            raise DataError(f"the image {image_path} cannot be read ({error})") from error
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        grid = self._load(path)
        if grid is None:
            grid = self._compute(data, image_path)
            self._store(path, grid, image_path)
        return grid

    def _load(self, path: Path) -> Tensor | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                grid: Tensor = file.get_tensor("grid")
            if grid.dtype != torch.float16 or grid.ndim != 3 or grid.shape[0] != self.teacher.dim:
                raise ValueError(f"holds {grid.dtype} {list(grid.shape)}, not float16 [{self.teacher.dim}, h, w]")
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("the cached features %s cannot be used (%s): computing them again", path, error)
            return None
        return grid

    def _compute(self, data: bytes, image_path: Path) -> Tensor:
        grid = self.teacher.features(_decode(data, image_path)).to("cpu", torch.float16)
        if not torch.isfinite(grid).all():
            raise DataError(f"the teacher's features of {image_path} are not finite in float16, the cache's precision")
        return grid

    def _store(self, path: Path, grid: Tensor, image_path: Path) -> None:
        record = {"model": self.teacher.name, "layer": self.teacher.layer, "image": image_path.name}
        # A name that no other process or thread uses, in the same folder so that the rename is atomic.
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
        try:
            # not save_file, which makes files that only their owner can read: a cache may be shared
            temporary.write_bytes(save({"grid": grid.contiguous()}, metadata={"record": json.dumps(record)}))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _decode(data: bytes, path: Path) -> np.ndarray[Any, Any]:
    """RGB pixels [H, W, 3] uint8 as stored: no EXIF rotation, since calibrations refer to the stored pixels."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    # PIL's decoders raise SyntaxError, ValueError and EOFError besides OSError on broken files
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"the image {path} cannot be decoded ({error})") from error
