"""The engines on a GPU: the CPU's features, no waits, the same bits again, and large scans. Skipped without one."""

from __future__ import annotations

import warnings

import pytest
import torch

from clever3d.backbones import Backbone, InputSpec, create_backbone
from clever3d.datasets.synthetic import street_scan
from clever3d.points import check_points, voxelize
from clever3d.sparse import SparseTensor, available_engines, engine_name, use_deterministic, use_engine

pytestmark = pytest.mark.cuda
#: Largest difference over the features' standard deviation, MinkUNet-34 (63 convolutions).
TOLERANCE = {"float32": 1e-3, "tf32": 0.1, "float16": 0.2, "bfloat16": 1.0}


@pytest.fixture(scope="module")
def street() -> SparseTensor:
    scan = street_scan(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cloud = check_points(scan.xyz, scan.intensity, InputSpec(), torch.device("cpu"))
    return voxelize([cloud], InputSpec()).tensor


@pytest.fixture(scope="module")
def backbone(street: SparseTensor) -> Backbone:
    """MinkUNet-34 whose batch-norm statistics are those of a street, so that all layers matter."""
    torch.manual_seed(0)
    network = create_backbone("minkunet34").train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = None  # averages
    with torch.no_grad():
        network(street)
    return network.eval()


@pytest.fixture(scope="module")
def expected(backbone: Backbone, street: SparseTensor) -> torch.Tensor:
    with torch.no_grad():
        return backbone.cpu()(street)[-1].feats


def on_gpu(x: SparseTensor) -> SparseTensor:
    return SparseTensor(x.feats.cuda(), x.coords.cuda())


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("engine", ["torch", "triton", "torchsparse"])
def test_features_are_those_of_the_cpu(
    engine: str, precision: str, backbone: Backbone, street: SparseTensor, expected: torch.Tensor
) -> None:
    if reason := available_engines("cuda")[engine]:
        pytest.skip(reason.splitlines()[0])
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    half = precision in ("float16", "bfloat16")
    try:
        with (
            torch.no_grad(),
            use_engine(engine),
            torch.autocast("cuda", dtype=getattr(torch, precision) if half else None, enabled=half),
        ):
            feats = backbone.cuda()(on_gpu(street))[-1].feats
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    difference = (feats.float().cpu() - expected).abs() / expected.std()
    assert difference.max() <= TOLERANCE[precision]


def test_a_prepared_network_never_waits_for_the_gpu(backbone: Backbone, street: SparseTensor) -> None:
    x = on_gpu(street)
    network = backbone.cuda()
    with torch.no_grad():
        network(on_gpu(street))  # compiles
        network.prepare(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            network(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_kernel_maps_wait_once_a_resolution(backbone: Backbone, street: SparseTensor) -> None:
    """Root: range, order; each of the four coarser ones: how many voxels it has."""
    x = on_gpu(street)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            backbone.cuda().prepare(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) <= 6


def test_features_and_gradients_repeat_bit_for_bit(street: SparseTensor) -> None:
    runs = []
    for mode in (False, False, True, True):
        torch.manual_seed(0)
        network = create_backbone("minkunet_small").cuda().train()
        with use_deterministic(mode):
            feats = network(on_gpu(street))[-1].feats
            feats.square().mean().backward()
        runs.append([feats.detach(), *(p.grad for p in network.parameters() if p.ndim > 1)])
    for first, second in (runs[:2], runs[2:]):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_are_those_of_the_torch_engine(street: SparseTensor) -> None:
    gradients = []
    for engine in ("torch", "triton"):
        torch.manual_seed(0)
        network = create_backbone("minkunet34").cuda().train()
        with use_engine(engine):
            network(on_gpu(street))[-1].feats.square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * float(theirs.abs().max()) + 1e-7)


def test_inductor_compiles_one_graph(backbone: Backbone, street: SparseTensor, expected: torch.Tensor) -> None:
    x, network = on_gpu(street), backbone.cuda()
    network.prepare(x)
    with torch.no_grad():
        feats = torch.compile(network, fullgraph=True)(x)[-1].feats
    torch.testing.assert_close(feats.cpu(), expected, rtol=0, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_training_stays_finite(dtype: torch.dtype, street: SparseTensor) -> None:
    network = create_backbone("minkunet_small").cuda().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    isolated = torch.tensor([[0, 40 * n, 0, 0] for n in range(20)])
    for coords in (street.coords, isolated, isolated[:1]):
        x = SparseTensor(torch.randn(len(coords), 8).cuda(), coords.cuda())
        x.feats[0] = 1e6
        for _ in range(4):
            with torch.autocast("cuda", dtype=dtype):
                loss = network(x)[-1].feats.float().square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert engine_name(x.feats) == "triton"
    assert all(bool(t.isfinite().all()) for t in network.state_dict().values())


def test_a_million_voxels_fit() -> None:
    side = torch.arange(100, dtype=torch.int32)
    coords = torch.cartesian_prod(torch.zeros(1, dtype=torch.int32), side, side, side)
    x = SparseTensor(torch.ones(len(coords), 8).cuda(), coords.cuda())
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
        feats = create_backbone("minkunet34").cuda().eval()(x)[-1].feats
    assert feats.shape == (1_000_000, 96) and bool(feats.isfinite().all())
