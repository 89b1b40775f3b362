"""Which engine convolves, compilation as one graph, and mixed precision that stays finite."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from dense import dense_convolution, random_scan

from clever3d.backbones import create_backbone
from clever3d.errors import InputError, UnknownNameError
from clever3d.sparse import Conv3d, Epilogue, SparseTensor, available_engines, convolve, engine_name, use_engine
from clever3d.sparse.engines import torch_engine


def voxels(count: int, channels: int = 8, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-9, 9, (count, 3), generator=generator).unique(dim=0)
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], dim=1)
    return SparseTensor(torch.randn(len(coords), channels, generator=generator), coords)


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_torch_is_the_engine_of_a_cpu() -> None:
    assert engine_name(torch.ones(1, 1)) == "torch"
    reasons = available_engines("cpu", torch.float64)
    assert reasons["torch"] is None and "float64" in str(reasons["triton"]) and reasons["torchsparse"]


@pytest.mark.cuda
def test_triton_is_the_engine_of_a_gpu_and_torch_of_its_float64() -> None:
    assert engine_name(torch.ones(1, 1, device="cuda")) == "triton"
    assert engine_name(torch.ones(1, 1, device="cuda", dtype=torch.float64)) == "torch"


def test_a_choice_ends_with_its_block() -> None:
    with use_engine("triton"):
        assert engine_name(torch.ones(1, 1)) == "triton"
        with use_engine(None):
            assert engine_name(torch.ones(1, 1)) == "torch"
        assert engine_name(torch.ones(1, 1)) == "triton"
    assert engine_name(torch.ones(1, 1)) == "torch"


def test_an_engine_that_does_not_exist_or_work_here_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'cudnn': choose torch, triton, torchsparse"):
        use_engine("cudnn")
    with use_engine("torchsparse"), pytest.raises(InputError, match="'torchsparse' was asked for, but torchsparse"):
        Conv3d(8, 8, 3)(voxels(20))


@pytest.mark.parametrize(("value", "expected"), [("torch", "torch"), ("", "torch"), ("nonsense", "UnknownNameError")])
def test_the_environment_chooses(value: str, expected: str) -> None:
    code = (
        "import torch, clever3d.sparse as s\n"
        "try: print(s.engine_name(torch.ones(1, 1)))\n"
        "except s.engines.UnknownNameError as error: print(type(error).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"CLEVER3D_ENGINE": value})
    assert run.stdout.strip() == expected, run.stderr


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_types_and_devices_that_do_not_fit_are_refused() -> None:
    x = voxels(20)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    with pytest.raises(InputError, match=r"feats are torch.float32, the kernel is torch.float64"):
        convolve(x.feats, torch.ones(27, 8, 2, dtype=torch.float64), kernel_map)
    with pytest.raises(InputError, match="move them to one device"):
        convolve(x.feats, torch.ones(27, 8, 2, device="meta"), kernel_map)
    with pytest.raises(InputError, match=r"feats are on meta, coords on cpu"):
        SparseTensor(x.feats.to("meta"), x.coords)
    with pytest.raises(InputError, match=r"kernel must be \[27, Cin, Cout\]"):
        convolve(x.feats, torch.ones(8, 8, 2), kernel_map)


def test_an_epilogue_is_for_inference() -> None:
    x = voxels(20)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    with pytest.raises(InputError, match="no gradient"):
        convolve(x.feats, torch.ones(27, 8, 2, requires_grad=True), kernel_map, Epilogue(relu=True))


@pytest.mark.parametrize("engine", ["torch", "triton"])
@pytest.mark.parametrize(
    ("end", "message"),
    [
        (Epilogue(torch.ones(2)), "scale and shift, or neither"),
        (Epilogue(torch.ones(1), torch.ones(1)), r"scale must be \[2\]"),
        (Epilogue(residual=torch.ones(1, 2)), "residual must be"),
        (Epilogue(torch.ones(2, device="meta"), torch.ones(2)), "on meta"),
    ],
)
def test_an_epilogue_that_does_not_fit_is_refused(engine: str, end: Epilogue, message: str) -> None:
    x = voxels(20)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    with use_engine(engine), pytest.raises(InputError, match=message):
        convolve(x.feats, torch.ones(27, 8, 2), kernel_map, end)


def test_sizes_that_are_none_are_refused() -> None:
    for size in (0, 2.0, (3, 3), (3, 0, 3)):
        with pytest.raises(InputError, match="must be positive"):
            Conv3d(2, 2, size)
        with pytest.raises(InputError, match="must be positive"):
            Conv3d(2, 2, 3, size)
    assert Conv3d(2, 2, [3, 3, 1]).kernel_size == (3, 3, 1)
    assert SparseTensor(torch.ones(1, 2), torch.zeros(1, 4).int(), 2).stride == (2, 2, 2)
    with pytest.raises(InputError, match=r"feats must be \[V, 4\]"):
        Conv3d(4, 2, 1)(voxels(20))


def test_other_voxels_need_another_pyramid() -> None:
    x = voxels(20)
    with pytest.raises(InputError, match="leave the pyramid out"):
        dataclasses.replace(x, coords=x.coords.flip(0))


def test_kernel_maps_made_in_inference_serve_training() -> None:
    backbone, x = create_backbone("minkunet_small", width=0.25), voxels(100)
    with torch.inference_mode():
        backbone.eval()(x)
    backbone.train()(x)[-1].feats.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_no_voxels_give_no_features() -> None:
    x = SparseTensor(torch.zeros(0, 8), torch.zeros(0, 4, dtype=torch.int32))
    with torch.no_grad():
        scales = create_backbone("minkunet_small", width=0.25).eval()(x)
    assert [len(scale) for scale in scales] == [0] * 5


# -- the torch engine --------------------------------------------------------------------------------------------------


def test_the_gathered_table_equals_dense_conv3d(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    gathered = torch_engine._gathered
    monkeypatch.setattr(torch_engine, "_table_is_cheaper", lambda *_: True)
    monkeypatch.setattr(torch_engine, "_gathered", lambda *a: used.append(1) or gathered(*a))
    monkeypatch.setattr(torch_engine, "_TABLE_ROWS", 100)
    for size, stride in ((3, 1), (2, 2)):
        x = random_scan(0.4, 3, seed=1)
        layer = Conv3d(3, 4, size, stride).double()
        y = layer(x)
        dense = dense_convolution(x.feats, x, y.coords, layer.kernel, size, stride)
        torch.testing.assert_close(y.feats, dense, rtol=1e-10, atol=1e-10)
        inputs = [x.feats, layer.kernel]
        ours, theirs = (torch.autograd.grad(out.square().sum(), inputs) for out in (y.feats, dense))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert used == [1, 1]


def test_the_table_is_for_thin_features_in_dense_neighbourhoods() -> None:
    full = torch.cartesian_prod(torch.zeros(1).int(), *[torch.arange(12, dtype=torch.int32)] * 3)
    scattered = full[::7] * torch.tensor([1, 3, 3, 3], dtype=torch.int32)
    maps = [SparseTensor(torch.ones(len(c), 1), c).pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
            for c in (full, scattered)]  # fmt: skip
    chosen = {(n, c): torch_engine._table_is_cheaper(maps[n], torch.empty(27, c, 32)) for n in (0, 1) for c in (4, 96)}
    assert chosen == {(0, 4): True, (0, 96): False, (1, 4): False, (1, 96): False}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    """27 products of one: a sum in bfloat16 would be as far off as its epsilon allows, this one is exact."""
    coords = torch.cartesian_prod(torch.zeros(1).int(), *[torch.arange(5, dtype=torch.int32)] * 3)
    x = SparseTensor(torch.full((125, 1), 1 + 2**-7, dtype=dtype), coords)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    centre = convolve(x.feats, torch.ones(27, 1, 1, dtype=dtype), kernel_map)[62]
    assert float(centre) == float(torch.tensor(27 * (1 + 2**-7)).to(dtype))


@pytest.mark.parametrize("engine", ["torch", "triton"])
@pytest.mark.parametrize("table", [False, True])
def test_float16_products_beyond_its_range_may_cancel(
    engine: str, table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 x 100 x 20 and 64 x 100 x -19.5: each offset alone exceeds float16, their sum and its hundredth do not."""
    monkeypatch.setattr(torch_engine, "_table_is_cheaper", lambda *_: table)
    x = SparseTensor(torch.full((2, 64), 100.0).half(), torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]))
    kernel = torch.zeros(27, 64, 1).half()
    kernel[13], kernel[14] = 20, -19.5  # the voxel itself, and the one at x + 1
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    hundredth = Epilogue(torch.full((1,), 0.01), torch.zeros(1))
    for autocast in (False, True):
        with use_engine(engine), torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
            assert float(convolve(x.feats, kernel, kernel_map)[0]) == 3200
            assert float(convolve(x.feats, kernel, kernel_map, hundredth)[1]) == 1280


def test_inference_in_one_pass_equals_layer_by_layer(small: torch.nn.Module) -> None:
    x = voxels(300)
    with torch.no_grad():
        fused = small(x)
    layered = small(x)
    assert layered[-1].feats.requires_grad and not fused[-1].feats.requires_grad
    for one, other in zip(fused, layered, strict=True):
        torch.testing.assert_close(one.feats, other.feats.detach(), rtol=1e-4, atol=1e-5)


# -- compilation -------------------------------------------------------------------------------------------------------

one_graph = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11),
    reason="one graph is known of torch 2.11 and newer; 2.4 breaks it",
)


@one_graph
def test_a_network_compiles_into_one_graph_for_scans_of_any_size() -> None:
    """``fullgraph`` refuses any break; one more compilation is allowed for the change of sizes to symbols."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    backbone = create_backbone("minkunet_small", width=0.25).eval()
    compiled = torch.compile(backbone, fullgraph=True, backend=backend)
    with torch.no_grad():
        for count in (200, 300, 100, 400):
            x = voxels(count, seed=count)
            backbone.prepare(x)
            torch.testing.assert_close(compiled(x)[-1].feats, backbone(x)[-1].feats)
        assert len(graphs) <= 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = compiled(x)[-1].feats
            assert half.dtype == torch.bfloat16
            torch.testing.assert_close(half, backbone(x)[-1].feats)
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert "clever3d.convolve_pairs.default" in names or "clever3d.convolve_pairs" in names


@one_graph
def test_a_compiled_network_trains() -> None:
    torch._dynamo.reset()
    backbone = create_backbone("minkunet_small", width=0.25).train()
    x = voxels(200)
    backbone.prepare(x)
    gradients = []
    for network in (backbone, torch.compile(backbone, fullgraph=True, backend="aot_eager")):
        backbone.zero_grad()
        network(x)[-1].feats.square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(backbone.parameters()))
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5 + 1e-4 * float(eager.abs().max()))


@one_graph
def test_extract_prepares_what_a_compiled_network_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone("minkunet_small", width=0.25).eval()
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 10
    expected = backbone.extract(points).features
    torch._dynamo.reset()
    backbone.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(backbone.extract(points).features, expected)


def test_operators_are_what_they_say_they_are() -> None:
    """torch's own checks of schema, fake kernel, autograd registration and compilation."""
    x = voxels(30, channels=3)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    arguments = (
        x.feats.requires_grad_(), torch.randn(27, 3, 2, requires_grad=True), kernel_map.in_rows, kernel_map.out_rows,
        kernel_map.sizes, None, len(x), kernel_map.identity, None, None, None, False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.clever3d.convolve_pairs.default, arguments)


# -- mixed precision ---------------------------------------------------------------------------------------------------


ISOLATED = torch.tensor([[0, 40 * n, 0, 0] for n in range(20)])  # under every offset but the centre: no pair
ONE = torch.tensor([[0, 1, 2, 3]])


@pytest.mark.parametrize("largest", [1.0, 1e6], ids=["ordinary", "huge"])
@pytest.mark.parametrize("coords", [voxels(200).coords, ISOLATED, ONE], ids=["scan", "empty offsets", "one voxel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_training_stays_finite(dtype: torch.dtype, coords: torch.Tensor, largest: float) -> None:
    """Steps that the loss scaler skips are part of training in float16; some must be taken, and nothing be lost."""
    torch.manual_seed(0)
    backbone = create_backbone("minkunet_small", width=0.25).train()
    before = [p.detach().clone() for p in backbone.parameters()]
    feats = torch.randn(len(coords), 8)
    feats[0] *= largest
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    for _ in range(12):
        with torch.autocast("cpu", dtype=dtype):
            features = backbone(SparseTensor(feats, coords))[-1].feats
            loss = (1 - torch.cosine_similarity(features.float(), torch.ones_like(features).float(), dim=1)).mean()
        assert bool(features.isfinite().all()) and bool(loss.isfinite())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(bool(tensor.isfinite().all()) for tensor in backbone.state_dict().values())
    assert any(not torch.equal(p, old) for p, old in zip(backbone.parameters(), before, strict=True))
