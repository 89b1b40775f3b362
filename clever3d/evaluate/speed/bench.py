"""Times of a backbone and of its peers, in turns, within a budget.

What is compared is timed in turns (ours, bare products, peer, ours, ...), and ratios are medians over the turns, for a
machine's clock drifts. Nothing timed includes what happens once, such as compiling: the first call stands by itself.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clever3d.backbones import ARCHITECTURES, Backbone, create_backbone
from clever3d.errors import InputError, UnknownNameError
from clever3d.evaluate.speed.limits import (
    PRECISIONS,
    BareProducts,
    free_memory,
    measure_limits,
    precision,
    run_products,
    threads,
    timed,
    with_peak,
)
from clever3d.evaluate.speed.workload import Convolution, convolutions_of, layers_on, make_cloud
from clever3d.sparse import Conv3d, ConvTranspose3d, SparseTensor, use_engine
from clever3d.zoo import load_backbone

TRAINING = "forward + backward"
BARE = "bare products"
LIMIT = "limit"
_SHARE = 0.2  # of the remaining time that the turns of one size may take, so that larger sizes get theirs (our choice)
_CALIBRATION = 4_000  # voxels (our choice)
_MEMORY = 0.9  # of the free memory that may be used (our choice)


def random_backbone(name: str) -> Backbone:
    """A network by the name of its architecture, of a zoo entry or of a file, with random weights (always the same).

    Speed does not depend on the weights, as long as their values stay ordinary: see :func:`calibrate`.

    Raises:
        UnknownNameError: there is none of that name; InputError: it has no sparse convolutions.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in ARCHITECTURES:
            backbone = create_backbone(name)
        else:
            try:
                backbone = load_backbone(name, pretrained=False)
            except UnknownNameError as error:
                raise UnknownNameError(f"{error} Or name an architecture: {', '.join(ARCHITECTURES)}.") from None
    if not any(isinstance(module, (Conv3d, ConvTranspose3d)) for module in backbone.modules()):
        raise InputError(
            f"{name} has no sparse convolutions, and this measures those: benchmarks/waffleiron.py times a WaffleIron"
        )
    calibrate(backbone, [make_cloud(_CALIBRATION, backbone.input_spec)])
    return backbone.eval()


@torch.no_grad()
def calibrate(backbone: Backbone, clouds: Sequence[SparseTensor]) -> None:
    """Sets the statistics of all batch normalisations to the mean over these clouds.

    Each layer then gives values of order one, as in a trained network; with the statistics of a new one (mean 0,
    variance 1) they shrink layer by layer. The module's mode stays as it is.
    """
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    momentum = [norm.momentum for norm in norms]
    was_training = backbone.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    backbone.train()
    with use_engine("torch"):  # the one that works on any device and in any type
        for cloud in clouds:
            backbone(SparseTensor(cloud.feats, cloud.coords))
    backbone.train(was_training)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value


class Runner:
    """A backbone as it is timed: each call starts from voxels without kernel maps.

    Args:
        backbone: on its device; left in eval mode.
        name: one of :data:`PRECISIONS`.
    """

    def __init__(self, backbone: Backbone, name: str) -> None:
        self.backbone, self.name = backbone.eval(), name
        self.device = backbone.device
        self.convolutions = convolutions_of(backbone)
        self._tables: dict[int, set[Convolution]] = {}  # by the size of the cloud

    def forward(self, cloud: SparseTensor) -> tuple[dict[str, float], Tensor]:
        """Seconds of ``maps``, ``forward`` and both (``total``), and the finest features ``[V, D]``."""
        fresh = SparseTensor(cloud.feats, cloud.coords)
        with torch.no_grad(), precision(self.name, self.device):
            maps, _ = timed(lambda: self._build_maps(fresh), self.device)
            forward, out = timed(lambda: self.backbone(fresh), self.device)
        if len(cloud) not in self._tables:
            self._tables[len(cloud)] = {
                convolution for convolution in self.convolutions if _has_table(convolution, fresh)
            }
        return {"maps": maps, "forward": forward, "total": maps + forward}, out[-1].feats

    def training(self, cloud: SparseTensor) -> float:
        """Seconds of forward and backward in train mode, kernel maps included."""
        network = self.trained
        fresh = SparseTensor(cloud.feats, cloud.coords)

        def step() -> None:
            with precision(self.name, self.device):
                network.prepare(fresh)
                finest: Tensor = network(fresh)[-1].feats
            finest.backward(torch.ones_like(finest))

        seconds, _ = timed(step, self.device)
        network.zero_grad(set_to_none=True)
        return seconds

    @functools.cached_property
    def trained(self) -> Backbone:
        """A copy in train mode, so that the statistics of the other stay as they are."""
        return copy.deepcopy(self.backbone).train()

    def _build_maps(self, fresh: SparseTensor) -> None:
        """What ``prepare`` makes, and the tables that layers were seen to derive later, in their forward pass."""
        self.backbone.prepare(fresh)
        for convolution in self._tables.get(len(fresh), ()):
            convolution.kernel_map(fresh.pyramid).table  # noqa: B018 (made on first use)


def _has_table(convolution: Convolution, cloud: SparseTensor) -> bool:
    if convolution.pointwise:
        return False
    kernel_map = convolution.kernel_map(cloud.pyramid)
    return f"table to {'fine' if kernel_map.transposed else 'coarse'}" in kernel_map.cache


@dataclass(frozen=True)
class Peer:
    """Another implementation of the same network, to be timed beside ours.

    Attributes:
        forward: given a cloud, what computes its features ``[V, D]`` in the cloud's order, kernel maps included.
        training: given a cloud, what runs forward and backward; None where it cannot train.
        threads: how many it must run with; ours are then timed with as many, too.
        tolerance: mean difference of the features, in units of their standard deviation, up to which they are the same.
    """

    name: str
    forward: Callable[[SparseTensor], Callable[[], Tensor]]
    training: Callable[[SparseTensor], Callable[[], object]] | None = None
    threads: int | None = None
    tolerance: float = 1e-4


@dataclass
class Measurement:
    """What one batch of scans takes.

    Attributes:
        voxels, batch: of all scans together; number of scans.
        neighbours: pairs of a voxel under the 3 x 3 x 3 kernel at the finest resolution, itself included.
        flops, traffic: of all convolutions of a forward pass, in FLOP and bytes (see ``Layer``).
        rounds: turns over which the medians are.
        seconds: medians; ``total`` is maps + forward, ``forward + backward`` is with maps.
        ratios: medians of the ratios of each turn.
        first_call: seconds of the first calls, with all that happens once.
        memory: bytes above what was in use, at the peak of the first call; None where it is not known.
        differences: of each peer's features from ours, mean and maximum in units of their standard deviation.
        skipped: what was not measured, with the reason.
    """

    voxels: int
    batch: int = 1
    neighbours: float = 0.0
    flops: int = 0
    traffic: int = 0
    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    first_call: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Bench:
    """Measures clouds one after the other, smallest first, within a budget of time.

    Args:
        runner: our network.
        backward: whether forward + backward is measured too.
        repeats: turns at most; fewer where they would take more than a fifth of the time that is left.
        budget: seconds from now. What is predicted not to fit, by the voxels of the cloud before, is not begun.
        peers: what to time beside it.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        backward: bool = True,
        repeats: int = 7,
        budget: float = 600.0,
        peers: Sequence[Peer] = (),
    ) -> None:
        self.runner, self.backward, self.repeats, self.peers = runner, backward, repeats, peers
        self.deadline = time.monotonic() + budget
        self.limits = measure_limits(runner.device, runner.name)
        self._bare = BareProducts(runner.device, runner.name)
        self._cost: dict[str, tuple[float, float]] = {}  # seconds and bytes a voxel, of inference and of training

    def measure(self, voxels: int, batch: int, make: Callable[[], SparseTensor]) -> Measurement:
        """One batch of scans; ``make`` gives it, on the CPU, and is not called where there is no time for it."""
        found = Measurement(voxels, batch)
        if not self._fits("inference", found):
            return found
        device = self.runner.device
        cloud = make()
        cloud = SparseTensor(cloud.feats.to(device), cloud.coords.to(device))
        found.voxels = len(cloud)
        try:
            self._measure(cloud, found)
        except torch.cuda.OutOfMemoryError as error:
            found.skipped["the rest" if found.seconds else "inference"] = f"out of memory: {_first_line(error)}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _measure(self, cloud: SparseTensor, found: Measurement) -> None:
        runner, device = self.runner, self.runner.device
        (times, ours), found.memory["forward"] = with_peak(lambda: runner.forward(cloud), device)
        found.first_call["forward"] = times["total"]
        layers = layers_on(runner.convolutions, SparseTensor(cloud.feats, cloud.coords))
        itemsize = PRECISIONS[runner.name].itemsize
        found.flops = sum(layer.flops for layer in layers)
        found.traffic = sum(layer.traffic(itemsize) for layer in layers)
        found.neighbours = next(sum(layer.pairs) / layer.num_out for layer in layers if not layer.convolution.pointwise)
        products = self._bare.products_of(layers)
        steps: dict[str, Callable[[], dict[str, float]]] = {"inference": lambda: self._inference(cloud, products)}
        if self.backward and self._fits("training", found, tuple(steps)):
            runner.trained  # noqa: B018 (made on first use, and no part of what a call takes)
            found.first_call[TRAINING], found.memory[TRAINING] = with_peak(lambda: runner.training(cloud), device)
            steps["training"] = lambda: {TRAINING: runner.training(cloud)}
        rivals: list[Peer] = []
        if self.peers and self._fits("peers", found, tuple(steps)):
            rivals = [peer for peer in self.peers if self._agrees(peer, cloud, ours, "training" in steps, found)]
            steps["peers"] = lambda: self._beside(cloud, rivals, "training" in steps)
        del ours
        turns = self._turns(steps, found)
        found.rounds = len(turns)
        found.seconds = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        found.seconds[LIMIT] = self.limits.seconds(layers, itemsize)
        found.ratios = _ratios(turns, found.seconds[LIMIT], rivals)

    def _turns(self, steps: dict[str, Callable[[], dict[str, float]]], found: Measurement) -> list[dict[str, float]]:
        """Everything in turns, as often as the time allows, at least once."""
        turns: list[dict[str, float]] = []
        wanted = 1
        while len(turns) < wanted:
            turn: dict[str, float] = {}
            for step, run in steps.items():
                start = time.monotonic()
                turn |= run()
                self._cost[step] = (time.monotonic() - start) / found.voxels, self._memory(step, found) / found.voxels
            turns.append(turn)
            if len(turns) == 1:
                each = found.voxels * sum(self._cost[step][0] for step in steps)
                left = self.deadline - time.monotonic()
                wanted = max(1, min(self.repeats, int(_SHARE * left / each)))
        return turns

    def _memory(self, step: str, found: Measurement) -> int:
        ours = {"inference": "forward", "training": TRAINING}
        names = [ours[step]] if step in ours else set(found.memory) - set(ours.values())
        return max((found.memory.get(name) or 0 for name in names), default=0)

    def _inference(self, cloud: SparseTensor, products: Sequence[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        turn, _ = self.runner.forward(cloud)
        turn[BARE], _ = timed(lambda: run_products(products), self.runner.device)
        return turn

    def _beside(self, cloud: SparseTensor, rivals: Sequence[Peer], train: bool) -> dict[str, float]:
        """The peers, and ours again where a peer runs with other threads."""
        turn: dict[str, float] = {}
        for peer in rivals:
            training = peer.training if train else None
            alone = peer.threads not in (None, torch.get_num_threads())
            total, both = (ours_beside(peer, what) for what in ("total", TRAINING))
            with threads(peer.threads):
                if alone and total not in turn:
                    turn[total] = self.runner.forward(cloud)[0]["total"]
                turn[peer.name], _ = timed(peer.forward(cloud), self.runner.device)
                if training is None:
                    continue
                if alone and both not in turn:
                    turn[both] = self.runner.training(cloud)
                turn[f"{peer.name}, {TRAINING}"], _ = timed(training(cloud), self.runner.device)
        return turn

    def _agrees(self, peer: Peer, cloud: SparseTensor, ours: Tensor, train: bool, found: Measurement) -> bool:
        """Runs a peer for the first time; one that fails, or computes something else, gets no time."""
        device = self.runner.device
        try:
            with threads(peer.threads):
                run = peer.forward(cloud)
                (seconds, theirs), memory = with_peak(lambda: timed(run, device), device)
                mean, largest = difference(theirs, ours)
                found.first_call[peer.name], found.memory[peer.name] = seconds, memory
                found.differences[peer.name] = {"mean": mean, "largest": largest}
                if not mean <= peer.tolerance:
                    found.skipped[peer.name] = (
                        f"its features differ from ours by {mean:.2g} of their standard deviation (at most "
                        f"{peer.tolerance:g} is rounding), so its time would mean nothing"
                    )
                    return False
                if train and peer.training is not None:
                    step = peer.training(cloud)
                    (seconds, _), memory = with_peak(lambda: timed(step, device), device)
                    name = f"{peer.name}, {TRAINING}"
                    found.first_call[name], found.memory[name] = seconds, memory
        except Exception as error:  # other people's code may raise anything; the rest can still be measured
            found.skipped[peer.name] = f"it failed: {type(error).__name__}: {_first_line(error)}"
            return False
        return True

    def _fits(self, step: str, found: Measurement, others: Sequence[str] = ()) -> bool:
        """Whether a step can be taken: two calls of it, and one of the others, must fit. If not, notes the reason."""
        seconds, memory = (cost * found.voxels for cost in self._cost.get(step, (0.0, 0.0)))
        rest = sum(self._cost.get(other, (0.0, 0.0))[0] * found.voxels for other in others)
        left, free = self.deadline - time.monotonic(), free_memory(self.runner.device)
        if 2 * seconds + rest > left or left <= 0:
            found.skipped[step] = f"about {2 * seconds + rest:.0f} s do not fit into the {max(left, 0):.0f} s left"
        elif free is not None and memory > _MEMORY * free:
            found.skipped[step] = f"about {memory / 1e9:.1f} GB do not fit into the {free / 1e9:.1f} GB free"
        return step not in found.skipped


def ours_beside(peer: Peer, what: str) -> str:
    """Name of our own time that a peer's is compared with: with as many threads."""
    if peer.threads in (None, torch.get_num_threads()):
        return what
    return f"{what}, {peer.threads} thread{'s' if peer.threads != 1 else ''}"


def difference(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Mean and largest absolute difference of two ``[V, D]``, in units of the reference's standard deviation."""
    features, reference = features.detach().double(), reference.detach().double()
    gap = (features - reference).abs() / reference.std()
    return float(gap.mean()), float(gap.max())


def _ratios(turns: Sequence[dict[str, float]], limit: float, rivals: Sequence[Peer]) -> dict[str, float]:
    pairs = {
        "maps / total": ("maps", "total"),
        f"total / {BARE}": ("total", BARE),
    }
    for peer in rivals:
        pairs[f"total / {peer.name}"] = ours_beside(peer, "total"), peer.name
        pairs[f"{TRAINING} / {peer.name}"] = ours_beside(peer, TRAINING), f"{peer.name}, {TRAINING}"
    ratios = {
        name: statistics.median(turn[a] / turn[b] for turn in turns)
        for name, (a, b) in pairs.items()
        if a in turns[0] and b in turns[0]
    }
    for name in ("forward", "total"):
        ratios[f"{name} / {LIMIT}"] = statistics.median(turn[name] for turn in turns) / limit
    return ratios


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]
