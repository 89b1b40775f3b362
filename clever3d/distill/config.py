"""Options of ``clever3d-train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clever3d.datasets.augment import AugmentConfig
from clever3d.distill.pairing import WhichCameras
from clever3d.distill.targets import TargetTransform
from clever3d.distill.teachers import DEFAULT_MODEL, Layer
from clever3d.errors import InputError
from clever3d.training import LoopConfig


@dataclass(frozen=True)
class DataConfig:
    """Which frames are learned from."""

    sets: tuple[str, ...] = ()
    """Data sets that clever3d.datasets.open_dataset reads: NAME:PATH#key=value&key=value, or just PATH, e.g.
    kitti:/data/kitti or rig:/data/mine#cameras=front."""
    val: tuple[str, ...] = ()
    """Frames kept for validation, as patterns of DATASET/ID, e.g. 'kitti/00000[67]'."""
    exclude: tuple[str, ...] = ()
    """Frames left out altogether, as patterns of DATASET/ID."""
    scene_power: float = 0.5
    """A scene of n frames is drawn with weight n ** this: 0 samples scenes evenly, 1 frames evenly (our choice)."""
    batch: int = 2
    """Scans per step."""
    pairs: int = 4096
    """Point-pixel pairs per scan that enter the loss."""
    below: float = 0.0
    """Points under the image by at most this share of its height take the features of its lower edge, for level cameras
    miss the ground near the car. 0.5 suits KITTI; 0 where the car fills the lower edge (our choice)."""
    cameras: WhichCameras = "all"
    """Cameras of a frame that are paired: all, or one at random each time, which is less work (ScaLR)."""
    occlusion: bool = False
    """Leave out points that stand hidden behind others from where the camera is."""
    max_bad: int | None = None
    """Frames with broken files that are left out, and named, before the run ends; by default 10, or one in 100."""
    balance: float = 0.5
    """Pairs are drawn with weight share(cluster) ** -balance, clusters of teacher features: rare things count more."""


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen image model."""

    model: str = DEFAULT_MODEL
    """Any timm ViT."""
    weights: Path | None = None
    """Local safetensors file in timm's names; without it timm downloads from the Hugging Face Hub."""
    layer: Layer = "prenorm"
    """Last block before or after the final LayerNorm."""
    tokens: int = 2048
    """Images keep their aspect ratio and are resized to about this many patches."""
    size: tuple[int, int] | None = None
    """(height, width) in pixels instead, as the papers do (ScaLR: 224 448)."""
    cache: Path = Path("runs/teacher-cache")
    """Folder of the cached features; shared by runs."""


@dataclass(frozen=True)
class StudentConfig:
    """The LiDAR network."""

    architecture: str = "minkunet34"
    """minkunet18, minkunet34 or minkunet_small."""
    width: float = 1.0
    """Multiplies all channels."""
    voxel: float = 0.1
    """Edge of a voxel, metres."""
    ground: float = -1.73
    """z of the ground below the sensor, metres (KITTI -1.73, nuScenes -1.84)."""
    head_layers: int = 3
    """Linear layers of the projection head; 1 is a linear head."""
    head_width: int = 2048
    """Hidden width of the projection head."""


@dataclass(frozen=True)
class TrainConfig:
    """Distil a frozen image model into a LiDAR backbone: no labels, only scans, images and calibration."""

    out: Path
    """Folder of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    target: TargetTransform = "center"
    """center removes the teacher's mean feature from the targets (our default); none is the plain form."""
    seed: int = 0
    """Seed of initialisation, sampling and augmentation."""
    resume: bool = False
    """Continue the run in --out."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: int = 0
    """CPU threads; 0 leaves torch's default."""

    def check(self) -> None:
        """Raises InputError for the first option whose value makes no sense."""
        augment = self.augment.rules()
        rules = [
            (self.data.batch >= 1, "data.batch", self.data.batch, "at least 1"),
            (self.data.pairs >= 1, "data.pairs", self.data.pairs, "at least 1"),
            (self.data.below >= 0, "data.below", self.data.below, "0 or more"),
            (self.student.width > 0, "student.width", self.student.width, "positive"),
            (self.student.voxel > 0, "student.voxel", self.student.voxel, "a positive number of metres"),
            (self.student.head_layers >= 1, "student.head-layers", self.student.head_layers, "at least 1"),
            (self.student.head_width >= 1, "student.head-width", self.student.head_width, "at least 1"),
            (self.data.max_bad is None or self.data.max_bad >= 0, "data.max-bad", self.data.max_bad, "0 or more"),
            *((good, f"augment.{name.replace('_', '-')}", value, want) for good, name, value, want in augment),
            (self.loop.steps >= 1, "loop.steps", self.loop.steps, "at least 1"),
            (self.loop.warmup >= 0, "loop.warmup", self.loop.warmup, "0 or more"),
            (self.loop.lr > 0, "loop.lr", self.loop.lr, "positive"),
            (self.loop.clip > 0, "loop.clip", self.loop.clip, "positive"),
            (self.loop.save_every >= 1, "loop.save-every", self.loop.save_every, "at least 1"),
            (self.loop.validate_every >= 1, "loop.validate-every", self.loop.validate_every, "at least 1"),
            (self.seed >= 0, "seed", self.seed, "0 or more"),
        ]
        for sound, option, value, expected in rules:
            if not sound:
                raise InputError(f"--{option} {value}: expected {expected}")
