"""``clever3d bench`` and benchmarks/: counts against closed forms, clouds of a given size, budgets, peers, files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from clever3d.backbones import Backbone, InputSpec
from clever3d.cli import app
from clever3d.errors import InputError
from clever3d.evaluate import speed
from clever3d.evaluate.speed import bench as bench_module
from clever3d.evaluate.speed import limits as limits_module
from clever3d.evaluate.speed import workload
from clever3d.evaluate.speed.limits import with_peak
from clever3d.sparse import SparseTensor
from clever3d.zoo import save_checkpoint

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CPU = torch.device("cpu")
SPEC = InputSpec(voxel_size=0.25)


def scan(number: int) -> np.ndarray:
    """A made-up scan of 3,000 points: ground and a wall, [N, 4]."""
    rng = np.random.default_rng(number)
    ground = np.column_stack([rng.uniform(-12, 12, (2000, 2)), rng.normal(-1.7, 0.05, 2000)])
    wall = np.column_stack([rng.normal(5, 0.05, 1000), rng.uniform(-8, 8, 1000), rng.uniform(-1.7, 2, 1000)])
    return np.column_stack([np.concatenate([ground, wall]), rng.random(3000)]).astype(np.float32)


def cube(edge: int) -> SparseTensor:
    """All voxels of a cube, some of them negative."""
    axis = torch.arange(edge) - 2
    xyz = torch.cartesian_prod(axis, axis, axis)
    return SparseTensor(torch.zeros(len(xyz), 3), torch.cat([torch.zeros(len(xyz), 1), xyz], dim=1).int())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rings and products: how fast this machine is does not matter here."""
    plain = limits_module.BareProducts.__init__
    monkeypatch.setattr(limits_module.BareProducts, "__init__", lambda self, *args: plain(self, *args, values=1 << 18))
    monkeypatch.setattr(bench_module, "measure_limits", lambda *_: speed.Limits(matmul=1e10, copy=1e9))


def make_bench(backbone: Backbone, **options: object) -> speed.Bench:
    return speed.Bench(speed.Runner(backbone, "float32"), **options)  # type: ignore[arg-type]


# What there is to compute


def test_network_without_sparse_convolutions_is_named() -> None:
    with pytest.raises(InputError, match=r"no sparse convolutions.*benchmarks/waffleiron\.py"):
        bench_module.random_backbone("waffleiron48_256")


@pytest.mark.parametrize("edge", [2, 4, 6])
def test_flops_and_bytes_of_a_full_cube_are_the_closed_forms(edge: int) -> None:
    one, two, three = (1, 1, 1), (2, 2, 2), (3, 3, 3)
    same, down, up, point = speed.layers_on(
        [
            speed.Convolution("same", one, three, one, False, 5, 7),
            speed.Convolution("down", one, two, two, False, 5, 7),
            speed.Convolution("up", one, two, two, True, 5, 7),
            speed.Convolution("point", two, one, one, False, 5, 7),
        ],
        cube(edge),
    )
    fine, coarse = edge**3, (edge // 2) ** 3
    pairs = (3 * edge - 2) ** 3  # along an axis: all offsets 0, and edge - 1 for each of -1 and 1
    assert same.flops == 2 * pairs * 5 * 7
    assert down.flops == up.flops == 2 * fine * 5 * 7  # every fine voxel has one parent
    assert point.flops == 2 * coarse * 5 * 7
    assert same.traffic(4) == 4 * (fine * 5 + fine * 7 + 27 * 5 * 7) + 4 * pairs
    assert down.traffic(2) == 2 * (fine * 5 + coarse * 7 + 8 * 5 * 7) + 4 * fine
    assert up.traffic(2) == 2 * (coarse * 5 + fine * 7 + 8 * 5 * 7) + 4 * fine
    assert point.traffic(2) == 2 * (coarse * 5 + coarse * 7 + 5 * 7)


def test_all_convolutions_of_a_network_are_seen_with_their_channels(small: Backbone) -> None:
    found = speed.convolutions_of(small)
    kernels = {name.removesuffix(".kernel"): k for name, k in small.named_parameters() if name.endswith("kernel")}
    assert {one.name for one in found} == set(kernels) and len(found) == len(kernels)
    assert all(kernels[one.name].shape[-2:] == (one.channels_in, one.channels_out) for one in found)
    assert [one.fine[0] for one in found if one.transposed] == [8, 4, 2, 1]
    assert not small.training


def test_bare_products_do_the_arithmetic_of_the_layers_also_when_cut_in_pieces() -> None:
    layers = speed.layers_on([speed.Convolution("same", (1, 1, 1), (3, 3, 3), (1, 1, 1), False, 5, 7)], cube(6))
    for ring in (35 * 4, 1 << 12, 1 << 16):
        bare = limits_module.BareProducts.__new__(limits_module.BareProducts)
        bare.rings, bare.kernels = [torch.zeros(ring), torch.zeros(ring)], torch.zeros(ring)
        products = bare.products_of(layers)
        speed.run_products(products)
        assert sum(2 * len(rows) * 5 * 7 for rows, _, _ in products) == layers[0].flops
        assert len(products) == 27 or ring < 16**3 * 7


def test_the_limit_is_the_larger_of_arithmetic_and_traffic() -> None:
    layers = speed.layers_on([speed.Convolution("same", (1, 1, 1), (3, 3, 3), (1, 1, 1), False, 5, 7)], cube(4))
    assert speed.Limits(matmul=1.0, copy=1e30).seconds(layers, 4) == layers[0].flops
    assert speed.Limits(matmul=1e30, copy=1.0).seconds(layers, 4) == layers[0].traffic(4)


# Clouds


@pytest.mark.parametrize(("voxels", "batch"), [(1, 1), (100, 1), (777, 2), (9_001, 1), (4_000, 3)])
def test_a_cloud_has_exactly_the_voxels_that_were_asked_for(voxels: int, batch: int) -> None:
    cloud = speed.make_cloud(voxels, SPEC, batch=batch, scan=scan)
    assert torch.bincount(cloud.coords[:, 0].long()).tolist() == [voxels] * batch
    assert len(cloud.coords.unique(dim=0)) == len(cloud)
    again = speed.make_cloud(voxels, SPEC, batch=batch, scan=scan)
    assert torch.equal(cloud.coords, again.coords) and torch.equal(cloud.feats, again.feats)


def test_scans_side_by_side_do_not_touch() -> None:
    """Twice the same scan has twice the pairs and twice the coarse voxels."""
    one = speed.voxelize_scans([scan(0)], SPEC)
    two = speed.make_cloud(2 * len(one), SPEC, scan=lambda number: scan(0))
    for stride in ((1, 1, 1), (16, 16, 16)):
        pairs = [cloud.pyramid.kernel_map(stride, (3, 3, 3), (1, 1, 1)) for cloud in (one, two)]
        assert pairs[1].num_in == 2 * pairs[0].num_in
        assert int(pairs[1].sizes.sum()) == 2 * int(pairs[0].sizes.sum())


def test_the_scans_of_a_batch_differ() -> None:
    cloud = speed.make_cloud(500, SPEC, batch=2, scan=scan)
    first, second = (cloud.coords[cloud.coords[:, 0] == entry, 1:] for entry in (0, 1))
    assert not torch.equal(first, second)


def test_streets_repeat_and_are_made_once() -> None:
    assert workload.street.cache_info().maxsize == workload.STREETS


@pytest.mark.parametrize(
    ("texts", "numbers"), [(["30k", "10k"], [10_000, 30_000]), (["1M,2.5k"], [2_500, 1_000_000]), (["7"], [7])]
)
def test_voxel_numbers_are_read(texts: list[str], numbers: list[int]) -> None:
    assert speed.parse_voxels(texts) == numbers


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "10kk", "ten", "nan"])
def test_what_is_no_number_of_voxels_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="30k"):
        speed.parse_voxels([text])


# Measuring


def test_a_measurement_has_times_ratios_and_memory(small: Backbone) -> None:
    found = make_bench(small, repeats=2).measure(900, 2, lambda: speed.make_cloud(450, SPEC, batch=2, scan=scan))
    assert (found.voxels, found.batch, found.skipped) == (900, 2, {})
    wanted = {"maps", "forward", "total", speed.BARE, speed.TRAINING, speed.LIMIT}
    assert set(found.seconds) == wanted and min(found.seconds.values()) > 0
    assert set(found.ratios) >= {"maps / total", f"total / {speed.BARE}", f"total / {speed.LIMIT}"}
    assert 0 < found.ratios["maps / total"] < 1
    layers = speed.layers_on(speed.convolutions_of(small), speed.make_cloud(450, SPEC, batch=2, scan=scan))
    assert found.flops == sum(layer.flops for layer in layers)
    assert found.seconds[speed.LIMIT] == max(found.flops / 1e10, found.traffic / 1e9)


def test_training_is_measured_on_a_copy(small: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    speed.Runner(small, "float32").training(speed.make_cloud(200, SPEC, scan=scan))
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters()) and not small.training


def test_kernel_maps_are_built_anew_in_each_call(small: Backbone) -> None:
    cloud = speed.make_cloud(200, SPEC, scan=scan)
    runner = speed.Runner(small, "float32")
    with torch.no_grad():
        expected = small(SparseTensor(cloud.feats, cloud.coords))[-1].feats
    for _ in range(2):
        assert torch.equal(runner.forward(cloud)[1], expected)
    assert not cloud.pyramid._maps


def test_calibrated_statistics_are_the_mean_over_the_clouds(small: Backbone) -> None:
    clouds = [speed.make_cloud(300, SPEC, scan=lambda _, number=number: scan(number)) for number in (0, 1)]
    stem = next(module for module in small.modules() if isinstance(module, torch.nn.BatchNorm1d))
    means = []
    for cloud in clouds:
        speed.calibrate(small, [cloud])
        assert stem.running_mean is not None
        means.append(stem.running_mean.clone())
    speed.calibrate(small, clouds)
    assert torch.allclose(stem.running_mean, (means[0] + means[1]) / 2, atol=1e-6)  # type: ignore[arg-type]
    assert stem.momentum == 0.1 and not small.training


def test_nothing_is_begun_after_the_budget(small: Backbone) -> None:
    made: list[int] = []
    found = make_bench(small, budget=0.0).measure(100, 1, lambda: made.append(1))  # type: ignore[arg-type, return-value]
    assert not made and not found.seconds and "s left" in found.skipped["inference"]


def test_what_is_predicted_not_to_fit_is_skipped_with_the_reason(
    small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> SparseTensor:
        return speed.make_cloud(100, SPEC, scan=scan)

    slow = make_bench(small, budget=100.0, repeats=1)
    slow._cost["training"] = 1.0, 0.0  # seconds and bytes a voxel: 100 s a call, 200 s for two
    found = slow.measure(100, 1, make)
    assert found.seconds["total"] > 0 and speed.TRAINING not in found.seconds
    assert found.skipped.keys() == {"training"} and "about 200 s" in found.skipped["training"]

    large = make_bench(small, budget=100.0, repeats=1)
    large._cost["inference"] = 0.0, 1e7
    monkeypatch.setattr(bench_module, "free_memory", lambda _: int(0.5e9))
    found = large.measure(100, 1, make)
    assert not found.seconds and found.skipped["inference"] == "about 1.0 GB do not fit into the 0.5 GB free"


def test_the_peak_of_memory_is_seen() -> None:
    result, peak = with_peak(lambda: float(torch.ones(32 << 20).sum()), CPU)  # 128 MiB
    assert result == 32 << 20
    if peak is None:
        pytest.skip("the peak of a process is known on Linux only")
    assert 100 << 20 < peak < 400 << 20


def test_precisions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="float32, tf32"), speed.precision("int8", CPU):
        pass
    with pytest.raises(InputError, match="CUDA"), speed.precision("tf32", CPU):
        pass


# Peers


def peer(forward: Callable[[SparseTensor], Tensor], **options: object) -> speed.Peer:
    return speed.Peer("other", lambda cloud: lambda: forward(cloud), **options)  # type: ignore[arg-type]


def test_a_peer_that_agrees_is_timed_beside_ours_with_its_own_threads(small: Backbone) -> None:
    runner = speed.Runner(small, "float32")
    alone = torch.get_num_threads() + 1
    seen: list[int] = []

    def forward(cloud: SparseTensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return runner.forward(cloud)[1]

    with_it = make_bench(small, backward=False, repeats=1, peers=[peer(forward, threads=alone)])
    found = with_it.measure(300, 1, lambda: speed.make_cloud(300, SPEC, scan=scan))
    assert set(seen) == {alone} and torch.get_num_threads() == alone - 1
    assert found.differences["other"]["largest"] < 1e-4
    ours = found.seconds[f"total, {alone} threads"]
    assert found.ratios["total / other"] == pytest.approx(ours / found.seconds["other"])


def test_a_peer_that_computes_something_else_gets_no_time(small: Backbone) -> None:
    runner = speed.Runner(small, "float32")
    wrong = peer(lambda cloud: runner.forward(cloud)[1].flip(0))
    found = make_bench(small, backward=False, peers=[wrong]).measure(
        300, 1, lambda: speed.make_cloud(300, SPEC, scan=scan)
    )
    assert "other" not in found.seconds and not any("other" in name for name in found.ratios)
    assert "differ" in found.skipped["other"] and found.seconds["total"] > 0


def test_a_peer_that_fails_is_named_and_the_rest_is_measured(small: Backbone) -> None:
    def fail(cloud: SparseTensor) -> Tensor:
        raise RuntimeError("no kernel image")

    found = make_bench(small, backward=False, peers=[peer(fail)]).measure(
        100, 1, lambda: speed.make_cloud(100, SPEC, scan=scan)
    )
    assert "no kernel image" in found.skipped["other"] and found.seconds["total"] > 0


@pytest.fixture()
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of benchmarks/."""
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of the source archive")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: pytest.importorskip(name)


def test_peers_that_cannot_be_had_are_named(
    small: Backbone, scripts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("spconv", "spconv.pytorch", "spconv_triton", "torchsparse"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    found, absent = scripts("peers").find_peers(small, "float32")
    assert not found and absent.keys() == {"spconv", "spconv-triton", "torchsparse"}
    assert "pip install spconv" in absent["spconv"]
    assert "GPU" in absent["spconv-triton"] and "torchsparse" in absent["torchsparse"]


def test_spconv_computes_the_same(small: Backbone, scripts: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("spconv.pytorch", reason="needs spconv (CPU wheel)")
    found, _ = scripts("peers").find_peers(small, "float32")
    cloud = speed.make_cloud(500, SPEC, batch=2, scan=scan)
    with speed.threads(1):
        theirs = found[0].forward(cloud)()
    assert speed.difference(theirs, speed.Runner(small, "float32").forward(cloud)[1])[1] < 1e-3


def test_targets_say_met_missed_and_not_measured(scripts: Callable[[str], ModuleType]) -> None:
    row = {
        "voxels": 30_000,
        "ratios": {"total / bare products": 1.2, "maps / total": 0.06, "total / spconv 2.3.8": 0.9},
    }
    cases = {"sweep": {"measurements": [row], "slopes": {"total": 1.01}, "absent peers": {}}}
    engine = scripts("engine")
    assert [one["met"] for one in engine.targets(cases, "cpu", 2)] == ["met", "MISSED", "met", "met"]
    absent = {"batch": {"measurements": [], "absent peers": {"spconv-triton": "not installed"}}}
    missing = engine.targets(absent, "cuda", 2)
    assert {one["met"] for one in missing} == {"not measured"}
    assert "not installed" in [one["seen"] for one in missing if "spconv-triton" in one["what"]]


# Reports


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_slope_is_the_exponent_of_the_cost(power: float) -> None:
    voxels = [1e4, 3e4, 1e5, 1e6]
    assert speed.slope(voxels, [3e-7 * v**power for v in voxels]) == pytest.approx(power)
    assert np.isnan(speed.slope([1e4], [1.0]))


def test_a_busy_machine_is_said() -> None:
    where = {"threads": 2, "processors": 4, "load": 1.9}
    assert speed.busy(where) is None
    assert "3.0 of 4" in str(speed.busy({**where, "load": 3.0}))
    assert speed.busy({**where, "load": None}) is None


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture()
def tiny(small: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the small network; made-up scans stand in for streets."""
    monkeypatch.setattr(speed, "street", scan)
    monkeypatch.setattr(bench_module, "make_cloud", lambda voxels, spec: speed.make_cloud(200, spec, scan=scan))
    save_checkpoint(small, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_the_command_writes_json_and_png(tiny: Path, tmp_path: Path) -> None:
    report, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["--backbone", tiny, "--device", "cpu", "--engine", "torch", "--threads", 1]
    status, output = run(
        *arguments, "--voxels", "200,100", "--voxels", "400", "--batch", 2, "-o", report, "--plot", picture
    )
    assert status == 0, output
    written = json.loads(report.read_text())
    assert [one["voxels"] for one in written["measurements"]] == [200, 400, 800]
    assert written["engine"] == "torch" and written["threads"] == 1 and written["backbone"] == "minkunet18"
    assert {"date", "torch", "triton", "clever3d", "device", "command", "limits"} <= written.keys()
    assert set(written["slopes"]) >= {"maps", "forward", speed.TRAINING, speed.BARE}
    assert Image.open(picture).size[0] >= 1600
    assert "slope" in output and str(report) in output


def test_the_command_measures_scans_as_they_are(tiny: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        scan(number).tofile(tmp_path / f"{number}.bin")
    status, output = run(
        "--backbone", tiny, "--device", "cpu", "--no-backward", "--scan", tmp_path / "0.bin",
        "--scan", tmp_path / "1.bin", "-o", tmp_path / "bench.json",
    )  # fmt: skip
    assert status == 0, output
    measured = json.loads((tmp_path / "bench.json").read_text())["measurements"][0]
    whole = speed.voxelize_scans([scan(0), scan(1)], SPEC)
    assert (measured["voxels"], measured["batch"]) == (len(whole), 2)
    assert speed.TRAINING not in measured["seconds"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--voxels", "3x"], "30k"),
        (["--dtype", "tf32", "--device", "cpu"], "float16"),
        (["--engine", "cuda"], "triton"),
        (["--backbone", "minkunet35"], "minkunet34"),
        (["--plot", "plot.jpg"], ".png"),
        (["-o", "bench.txt"], ".json"),
        (["--batch", "0"], "--batch"),
        (["--scan", "missing.bin"], "missing.bin"),
        (["--scan", "0.bin", "--batch", "2"], "--voxels"),
    ],
)
def test_bad_options_are_refused_with_what_to_do(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_module, "make_cloud", lambda voxels, spec: speed.make_cloud(50, spec, scan=scan))
    scan(0).tofile("0.bin")
    status, output = run(*arguments)
    assert status == 2 and said in output
    assert not Path("clever3d-bench.json").exists()
