"""Whether an image file is whole."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from clever3d.errors import DataError

# Where the mark that ends a file is looked for; some cameras write a little after it (our choice).
_TAIL = 65536
_END = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}


def check_image(path: Path, *, fast: bool = False) -> tuple[int, int]:
    """(W, H) of a whole image; raises DataError, OSError, or what the decoder raises for one that is not.

    All is decoded, and the checksums of a PNG are compared, which Pillow's decoder does not do. Of a JPEG every
    coefficient is decoded, but the picture is built at an eighth of its size: what is missing is missed all the same,
    in half the time. A JPEG has no checksums: changed bytes inside it are found only where they break its code.
    fast: the header and the mark at the end only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images, odd metadata: not what is asked here
        if fast:
            with Image.open(path) as image, path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                _require_end(image.format, file.read())
                return (image.width, image.height)
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            size, kind = (image.width, image.height), image.format
            _require_end(kind, data[-_TAIL:])
            if kind == "PNG":
                image.verify()
        with Image.open(io.BytesIO(data)) as image:
            if kind == "JPEG":
                image.draft("L", (size[0] // 8, size[1] // 8))
            image.load()
    return size


def _require_end(kind: str | None, tail: bytes) -> None:
    mark = _END.get(kind or "")
    if mark is not None and mark not in tail:
        raise DataError(f"the {kind} has no end mark: it is truncated")
