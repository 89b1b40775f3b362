"""From options to a trained student: opens the data, fills the teacher's cache, runs the loop, writes the student."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn
from tqdm import tqdm

from clever3d._version import __version__
from clever3d.backbones import ARCHITECTURES, create_backbone
from clever3d.datasets import Dataset, guess_dataset, open_dataset, split_spec
from clever3d.datasets.loading import BadFrame, BadFrames
from clever3d.distill.config import TrainConfig
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.head import projection_head
from clever3d.distill.targets import TargetStats, TargetTransform
from clever3d.distill.task import Distillation, Example
from clever3d.distill.teachers import Teacher
from clever3d.errors import CheckpointError, DataError, InputError
from clever3d.io import atomic_path
from clever3d.points import InputSpec
from clever3d.training import STATE_FILE, run
from clever3d.zoo import save_checkpoint

logger = logging.getLogger(__name__)


def split_frames(config: TrainConfig) -> tuple[list[Example], list[Example], BadFrames]:
    """Training and validation frames; a frame that is excluded, or has no image at all, is in neither. The third are
    those without a usable calibration, in a count that the run goes on with.

    Raises:
        InputError: no data sets, a pattern that matches no frame, or a data set opened with earlier sweeps.
        DataError: nothing left to train on.
    """
    if not config.data.sets:
        raise InputError("no data: give at least one data set, e.g. --data.sets kitti:/data/kitti")
    sets = [open_dataset(spec) for spec in config.data.sets]
    bad = BadFrames(sum(map(len, sets)), config.data.max_bad)
    examples = [example for number, data in enumerate(sets) for example in _examples(data, number, bad)]
    unused = {*config.data.val, *config.data.exclude}
    train: list[Example] = []
    val: list[Example] = []
    bare = 0
    for example in examples:
        hits = {p for p in (*config.data.val, *config.data.exclude) if fnmatch(example.name, p)}
        unused -= hits
        if hits & set(config.data.exclude):
            continue
        if not example.frame.cameras:
            bare += 1
            continue
        (val if hits else train).append(example)
    if unused:
        name = examples[0].name if examples else "kitti/000007"
        raise InputError(f"patterns {sorted(unused)} match no frame; frames are named like {name!r}")
    if not train:
        counts = f"{len(examples)} found, {len(val)} of them kept for validation, {bare} without any image"
        raise DataError(f"no frames to train on: {counts}")
    if bare:
        logger.info("%d of %d frames have no image and are left out", bare, len(examples))
        bad.frames -= bare
    return train, val, bad


def _examples(data: Dataset, number: int, bad: BadFrames) -> Iterator[Example]:
    suffix = f" (data set {number + 1})" if number else ""
    for index in range(len(data)):
        try:
            frame = data[index]
        except DataError as error:  # its calibration cannot be used
            bad.add([BadFrame(f"{data.name}/number {index}{suffix}", str(error))])
            continue
        if frame.sweeps:
            raise InputError(
                f"--data.sets, no. {number + 1} ({data.name}): the student learns from single scans and would ignore "
                "the earlier sweeps; leave sweeps= out"
            )
        yield Example(frame, number)


def fill_cache(examples: Sequence[Example], cache: FeatureCache, bad: BadFrames) -> None:
    """Runs the teacher once over every image; a frame with an image that cannot be read is counted in ``bad``."""
    images = [(example, camera.image_path) for example in examples for camera in example.frame.cameras]
    for example, image in tqdm(images, desc="teacher", unit="image", disable=not sys.stderr.isatty()):
        try:
            cache.get(image)
        except DataError as error:
            bad.add([BadFrame(example.title, str(error))])


def _check_folder(config: TrainConfig) -> None:
    """A resumed run needs its state, a new one a folder of its own."""
    saved = (config.out / STATE_FILE).is_file()
    if config.resume and not saved:
        raise CheckpointError(f"there is no training state in {config.out}: start without --resume, or check --out")
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"{config.out} is a file: choose another --out")
    if not config.resume and config.out.is_dir() and any(config.out.iterdir()):
        remedy = "add --resume to continue that run" if saved else "it holds no state to resume, so empty it"
        raise InputError(f"{config.out} is not empty: {remedy}, or choose another --out")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no usable CUDA device; use --device cpu")
    return torch.device(name)


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return values


def _kind(spec: str) -> str:
    """NAME#options of a data set, without its path."""
    name, root, options = split_spec(spec)
    kind = name or guess_dataset(root) or ""
    return f"{kind}#{'&'.join(sorted(options.split('&')))}" if options else kind


def _identity(config: TrainConfig, teacher: Teacher, train: Sequence[Example]) -> dict[str, Any]:
    """What must not change between the parts of a run. Files may move and ``--loop.steps`` may be raised or lowered
    (the schedule then follows the new length); frames, their cameras and other options may not change."""
    cameras = json.dumps([[camera.name for camera in example.frame.cameras] for example in train])
    values = _plain(config)
    loop = {k: v for k, v in values["loop"].items() if k != "steps" and not k.endswith("_every")}
    student = {**values["student"], "loop": loop, "augment": values["augment"]}
    data = {k: values["data"][k] for k in ("scene_power", "batch", "pairs", "below", "balance", "cameras", "occlusion")}
    return {
        "teacher": teacher.fingerprint,
        "target": config.target,
        "seed": config.seed,
        "frames": [example.name for example in train],
        "frame_cameras": hashlib.sha256(cameras.encode()).hexdigest(),
        "data_sets": [_kind(spec) for spec in config.data.sets],
        "student": student,
        "data": data,
    }


def _record(config: TrainConfig, train: Sequence[Example]) -> dict[str, Any]:
    """What the checkpoint says of itself. Paths are left out: they say where, not what."""
    scenes = sorted({f"{example.frame.dataset}/{example.frame.scene}" for example in train})
    values = _plain(config)
    for key in ("out", "resume", "device", "threads"):
        values.pop(key)
    values["teacher"] = {k: v for k, v in values["teacher"].items() if k not in ("weights", "cache")}
    values["data"] = {k: v for k, v in values["data"].items() if k != "sets"}
    return {
        "recipe": "feature similarity (1 - cosine), MLP head",
        "teacher": config.teacher.model,
        "frames": len(train),
        "scenes": scenes,
        "options": values,
        "clever3d": __version__,
        "date": date.today().isoformat(),
    }


def train(config: TrainConfig) -> bool:
    """Runs or resumes a distillation.

    Returns:
        True when the run is complete, False when it was interrupted (and saved).

    Raises:
        clever3d.Clever3dError: options, data, teacher or state that cannot be used.
    """
    config.check()
    if config.student.architecture not in ARCHITECTURES:
        create_backbone(config.student.architecture)  # raises with the nearest name
    _check_folder(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    frames, val, bad = split_frames(config)
    options = config.teacher
    teacher = Teacher.create(options.model, options.weights, options.layer, options.tokens, options.size, device=device)
    cache = FeatureCache(options.cache, teacher)
    logger.info("%d training frames, %d validation frames, teacher %s", len(frames), len(val), options.model)
    fill_cache([*frames, *val], cache, bad)

    torch.manual_seed(config.seed)
    spec = InputSpec(
        voxel_size=config.student.voxel,
        ground_height=config.student.ground,
        trained_sensors=tuple(sorted({example.frame.dataset for example in frames})),
    )
    narrower = {} if config.student.width == 1.0 else {"width": config.student.width}  # a factor; of MinkUNet only
    backbone = create_backbone(config.student.architecture, input_spec=spec, **narrower).to(device)
    head = projection_head(
        backbone.feature_dim, teacher.dim, layers=config.student.head_layers, hidden=config.student.head_width
    ).to(device)
    task = Distillation(
        backbone,
        head,
        frames,
        val,
        cache,
        data=config.data,
        augment=config.augment,
        target=config.target,
        seed=config.seed,
        bad=bad,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    options_path, options_text = config.out / "config.json", json.dumps(_plain(config), indent=2) + "\n"
    if not config.resume:
        options_path.write_text(options_text)
    complete = run(task, config.loop, config.out, resume=config.resume, identity=_identity(config, teacher, frames))
    if config.resume:  # only now is it known that the state belongs to these options
        options_path.write_text(options_text)
    _write_student(task, config, _record(config, frames))
    return complete


def _write_student(task: Distillation, config: TrainConfig, record: dict[str, Any]) -> None:
    path = config.out / "student.safetensors"
    save_checkpoint(task.backbone, path, record=record)
    stats = {f"stats.{field.name}": getattr(task.stats, field.name) for field in dataclasses.fields(task.stats)}
    head = {f"head.{key}": value for key, value in task.head.state_dict().items()}
    plain = {key: value.detach().cpu().contiguous() for key, value in {**stats, **head}.items()}
    with atomic_path(config.out / "head.safetensors") as temporary:
        temporary.write_bytes(save(plain))
    logger.info("student written to %s", path)


def load_head(run_folder: Path) -> tuple[nn.Module, TargetStats, TargetTransform]:
    """Projection head, target statistics and target transform of a run, to compare its student with the teacher.

    Raises:
        CheckpointError: the folder holds no finished or interrupted run.
    """
    try:
        config = json.loads((run_folder / "config.json").read_text())
        tensors = load((run_folder / "head.safetensors").read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{run_folder} holds no run of clever3d-train ({error})") from error
    stats = TargetStats(**{f.name: tensors[f"stats.{f.name}"] for f in dataclasses.fields(TargetStats)})
    weights = {key.removeprefix("head."): value for key, value in tensors.items() if key.startswith("head.")}
    # by the number of the layer: a safetensors file keeps its tensors in an order of its own
    linears = sorted((int(key.split(".")[0]), value.shape) for key, value in weights.items() if value.ndim == 2)
    shapes = [shape for _, shape in linears]
    head = projection_head(shapes[0][1], shapes[-1][0], layers=len(shapes), hidden=config["student"]["head_width"])
    head.load_state_dict(weights)
    return head.eval(), stats, config["target"]
