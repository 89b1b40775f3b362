"""The ``clever3d-train`` command."""

from __future__ import annotations

import logging
import os
import sys

import tyro

from clever3d.distill.config import TrainConfig
from clever3d.errors import Clever3dError


def main() -> None:
    """Parses the options and trains. Exit status 0: complete, 2: an error, 130: interrupted and saved."""
    config = tyro.cli(TrainConfig, prog="clever3d-train")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from clever3d.distill.train import train

    try:
        complete = train(config)
    except Clever3dError as error:
        if os.environ.get("CLEVER3D_DEBUG"):
            raise
        sys.stderr.write(f"clever3d-train: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("clever3d-train: interrupted; the last saved state is in the run's folder\n")
        sys.exit(130)
    if not complete:
        sys.stderr.write("clever3d-train: stopped and saved; continue with the same command and --resume\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
