"""The ``clever3d`` command, as a person at a terminal or a script meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import clever3d
from clever3d.backbones import Backbone, InputSpec, create_backbone
from clever3d.cli import app
from clever3d.datasets import synthetic
from clever3d.errors import DataError
from clever3d.zoo import save_checkpoint

COMMAND = [sys.executable, "-c", "from clever3d.cli import main; main()"]
RECORD = {"name": "tiny-test.one", "sha256": "0" * 64, "weights_licence": "CC0-1.0"}


def run(*args: str | Path) -> tuple[int, str]:
    """Exit status and all output."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def street(n: int = 500) -> np.ndarray:
    """x y z intensity of a made-up scan: [n, 4] float32."""
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(0, [8, 8, 1], (n, 3)), rng.integers(0, 100, n) / 100])
    return rows.astype(np.float32)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def network() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_backbone("minkunet18", input_spec=InputSpec(voxel_size=0.25), width=0.1).eval()


@pytest.fixture(scope="module")
def tiny(network: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(network, path, record=RECORD)
    return path


@pytest.fixture()
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "000001.bin"
    street().tofile(path)
    return path


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# the command itself


def test_version_and_help() -> None:
    assert run("--version") == (0, f"clever3d {clever3d.__version__}\n")
    status, output = run("--help")
    assert status == 0
    for command in ("demo", "extract", "list", "info"):
        assert command in output


def test_help_of_extract_names_every_option() -> None:
    wide = {**os.environ, "COLUMNS": "120", "TERM": "dumb"}
    done = subprocess.run([*COMMAND, "extract", "--help"], capture_output=True, text=True, check=True, env=wide)
    for option in ["output", "picture", "backbone", "frame", "columns", "intensity-scale", "device", "half"]:
        assert f"--{option} " in done.stdout


def test_command_starts_without_torch_or_numpy() -> None:
    code = "import sys, clever3d.cli; print([m for m in ('torch', 'numpy', 'timm', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# extract


def test_extract_writes_what_the_library_computes(scan: Path, tiny: Path, network: Backbone) -> None:
    status, output = run("extract", scan, "-o", "out.npz", "--backbone", tiny, "--device", "cpu")
    assert status == 0
    rows = street()
    expected = network.extract(rows[:, :3], rows[:, 3])
    with np.load("out.npz", allow_pickle=False) as saved:
        assert sorted(saved) == ["features", "intensity", "meta", "valid", "xyz"]
        np.testing.assert_allclose(saved["features"], expected.features.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(saved["valid"], expected.valid.numpy())
        np.testing.assert_array_equal(saved["xyz"], rows[:, :3])
        np.testing.assert_array_equal(saved["intensity"], rows[:, 3])
        meta = json.loads(saved["meta"].item())
        assert saved["features"].dtype == np.float32
        assert saved["features"].std() > 0
    assert meta["scan"] == "000001.bin"
    assert meta["weights"] == RECORD
    assert meta["architecture"] == "minkunet18"
    assert meta["input_spec"]["voxel_size"] == 0.25
    for part in ("4 columns", "kept", "tiny-test.one", "500 of 500 points valid", "points/s", "out.npz"):
        assert part in output
    assert files() == ["out.npz"]


def test_extract_names_the_output_after_the_scan_and_writes_it_here(scan: Path, tiny: Path) -> None:
    assert run("extract", scan, "--backbone", tiny)[0] == 0
    two_suffixes = scan.with_name("sweep.pcd.bin")
    scan.rename(two_suffixes)
    assert run("extract", two_suffixes, "--backbone", tiny)[0] == 0
    assert files() == ["000001.features.npz", "sweep.features.npz"]


@pytest.mark.parametrize(
    ("options", "axes", "said"),
    [
        ((), [1, -0.0, 2], "turned from rfu"),
        (("--frame", "flu"), [0, 1, 2], "as asked"),
        (("--frame", "BLU"), [-0.0, 1, 2], "turned from blu (as asked"),
    ],
)
def test_extract_turns_nuscenes_axes_unless_told(
    scan: Path, tiny: Path, options: tuple[str, ...], axes: list[float], said: str
) -> None:
    rows = np.column_stack([street(), np.arange(500) % 32]).astype(np.float32)
    rows[:, 3] = np.arange(500) % 256
    rows.tofile(scan)
    status, output = run("extract", scan, "-o", "out.npz", "--backbone", tiny, *options)
    assert status == 0
    assert said in output
    assert "5 columns" in output
    signs = np.copysign(1, axes)
    with np.load("out.npz") as saved:
        np.testing.assert_array_equal(saved["xyz"], rows[:, [int(abs(axis)) for axis in axes]] * signs)
        np.testing.assert_allclose(saved["intensity"], rows[:, 3] / 255, rtol=1e-6)


def test_extract_reads_npy_without_intensity_and_stores_half(scan: Path, tiny: Path) -> None:
    np.save("points.npy", street()[:, :3].astype(np.float64))
    status, _ = run("extract", "points.npy", "-o", "out.npz", "--backbone", tiny, "--half")
    assert status == 0
    with np.load("out.npz") as saved:
        assert sorted(saved) == ["features", "meta", "valid", "xyz"]
        assert saved["features"].dtype == np.float16


def test_extract_reads_pcd(tiny: Path) -> None:
    pypcd4 = pytest.importorskip("pypcd4")
    pypcd4.PointCloud.from_xyzi_points(street()).save("points.pcd")
    status, output = run("extract", "points.pcd", "--backbone", tiny)
    assert status == 0
    assert "PCD binary" in output


def test_extract_keeps_points_that_are_not_finite(scan: Path, tiny: Path) -> None:
    rows = street()
    rows[7, 0], rows[9, 2] = np.nan, np.inf
    rows[11, :3] = 5000
    rows.tofile(scan)
    with pytest.warns(UserWarning, match="not finite"):
        status, output = run("extract", scan, "-o", "out.npz", "--backbone", tiny)
    assert status == 0
    assert "497 of 500 points valid" in output
    with np.load("out.npz") as saved:
        assert np.flatnonzero(~saved["valid"]).tolist() == [7, 9, 11]
        assert not saved["features"][[7, 9, 11]].any()


def test_extract_draws_a_picture(scan: Path, tiny: Path) -> None:
    pytest.importorskip("matplotlib")
    status, output = run("extract", scan, "-o", "out.npz", "--picture", "out.png", "--backbone", tiny)
    assert status == 0
    assert "out.png" in output
    with Image.open("out.png") as image:
        assert min(image.size) > 500
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3)[::50], axis=0)) > 20
    assert files() == ["out.npz", "out.png"]


def test_extract_without_matplotlib_says_so_before_the_work(
    scan: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    status, output = run("extract", scan, "--picture", "out.png", "--backbone", tiny)
    assert status == 2
    assert 'pip install "clever3d[view]"' in output
    assert files() == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.bin"], "nowhere.bin does not exist"),
        (["."], "is a folder"),
        (["empty.bin"], "is empty"),
        (["cut.bin"], "truncated"),
        (["notes.txt"], ".bin, .npy, .pcd"),
        (["SCAN", "--columns", "2"], "at least 3"),
        (["SCAN", "--frame", "xyz"], "rfu"),
        (["SCAN", "--intensity-scale", "-1"], "above 0"),
        (["SCAN", "--backbone", "minkunet-dinov2-x"], "minkunet-dinov2-"),
        (["SCAN", "--backbone", "nowhere.safetensors"], "nowhere.safetensors"),
        (["SCAN", "--backbone", "empty.bin"], "empty.bin"),
    ],
)
def test_extract_answers_mistakes_in_one_message(scan: Path, tiny: Path, args: list[str], message: str) -> None:
    Path("empty.bin").touch()
    Path("cut.bin").write_bytes(street().tobytes()[:-5])
    Path("notes.txt").write_text("hello")
    before = files()
    status, output = run("extract", *[str(scan) if arg == "SCAN" else arg for arg in args])
    assert status == 2
    assert message in output
    assert output.splitlines()[-1].startswith("clever3d: ") or "\n  " in output
    assert "Traceback" not in output
    assert files() == before


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("-o", "nowhere/out.npz", "no folder nowhere"),
        ("-o", "out.txt", "must end in .npz"),
        ("-o", "file/out.npz", "no folder file"),
        ("--picture", "nowhere/out.png", "no folder nowhere"),
        ("--picture", "out.jpeg", "must end in .png"),
    ],
)
def test_extract_checks_where_it_writes_before_anything_else(option: str, path: str, message: str) -> None:
    Path("file").touch()
    status, output = run("extract", "no-such-scan.bin", option, path)
    assert status == 2
    assert message in output


def test_extract_refuses_a_scan_with_no_point_in_range(scan: Path, tiny: Path) -> None:
    rows = street()
    rows[:, :3] = rows[:, :3] * 100 + 400_000
    rows.tofile(scan)
    with pytest.warns(UserWarning, match="millimetres"):
        status, output = run("extract", scan, "--backbone", tiny)
    assert status == 2
    assert "none of the 500 points" in output
    assert files() == []


def test_warnings_are_one_clean_line(scan: Path, tiny: Path) -> None:
    rows = street()
    rows[7, 0] = np.nan
    rows.tofile(scan)
    done = subprocess.run([*COMMAND, "extract", scan, "--backbone", tiny], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("WARNING: 1 of 500 points are not finite")


def test_debug_variable_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEVER3D_DEBUG", "1")
    with pytest.raises(DataError):
        run("extract", "nowhere.bin")


def test_interrupt_leaves_130_and_no_file(scan: Path, tiny: Path) -> None:
    street(300_000).tofile(scan)
    process = subprocess.Popen(
        [*COMMAND, "extract", scan, "--backbone", tiny],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("scan")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "clever3d: interrupted"
    assert files() == []


def test_interrupt_while_the_network_runs_leaves_130_and_no_file(
    scan: Path, tiny: Path, coarse_street: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Backbone, "extract", interrupted)
    assert run("extract", scan, "--backbone", tiny)[0] == 130
    assert run("demo", "--backbone", tiny)[0] == 130
    assert files() == []


# list and info


def test_list_shows_every_backbone_and_its_honest_state() -> None:
    status, output = run("list")
    assert status == 0
    for name in clever3d.list_backbones():
        line = next(line for line in output.splitlines() if line.startswith(name))
        assert ("not trained yet" in line) == (clever3d.backbone_info(name).status == "recipe")


@pytest.mark.parametrize("pattern", ["dinov2_b", "*dinov2_b*", "minkunet-dinov2-b"])
def test_list_takes_part_of_a_name_or_a_pattern(pattern: str) -> None:
    status, output = run("list", pattern, "--json")
    assert status == 0
    found = json.loads(output)
    assert found
    assert all("dinov2_b" in one["name"] for one in found)


def test_list_without_a_match_says_so() -> None:
    status, output = run("list", "nothing-like-this")
    assert status == 1
    assert "nothing-like-this" in output
    assert run("list", "nothing-like-this", "--json") == (0, "[]\n")


def test_list_takes_status_teacher_and_licence() -> None:
    def names(*options: str) -> list[str]:
        return [one["name"] for one in json.loads(run("list", "--json", *options)[1])]

    assert names("--status", "bundled") == ["minkunet_small-dinov2_s.clever_street"]
    assert names("--teacher", "dinov2_b") == ["minkunet34-dinov2_b.clever_nuscenes"]
    free = names("--licence", "commercial")
    assert free and set(free).isdisjoint(names("--licence", "non-commercial"))
    status, output = run("list", "--status", "bundled", "--licence", "commercial")
    assert status == 1 and "no backbone matches '*' --status bundled --licence commercial" in output
    status, output = run("list", "--status", "trained")
    assert status == 2 and "none of bundled, hub" in output


def test_list_and_info_name_a_broken_manifest_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ours.json").write_text("{}")
    monkeypatch.setenv("CLEVER3D_MANIFEST", "ours.json")
    for command in (["list"], ["info", "minkunet-dinov2-s"]):
        status, output = run(*command)
        assert status == 2 and "ours.json" in output


def test_info_by_short_name_as_text_and_json() -> None:
    info = clever3d.backbone_info("minkunet-dinov2-s")
    assert run("info", "minkunet-dinov2-s") == (0, f"{info}\n")
    status, output = run("info", "minkunet-dinov2-s", "--json")
    assert status == 0
    assert json.loads(output) == {**info.to_dict(), "aliases": list(info.aliases)}


def test_info_of_an_unknown_name_suggests() -> None:
    status, output = run("info", "minkunet-dinov2-z")
    assert status == 2
    assert "minkunet-dinov2-s" in output


# demo


@pytest.fixture()
def coarse_street(monkeypatch: pytest.MonkeyPatch) -> None:
    """A street of some thousand points instead of a hundred thousand."""
    monkeypatch.setattr(synthetic, "street_scan", partial(synthetic.street_scan, beams=16, azimuth_steps=256))


def test_demo_writes_a_picture_features_and_a_scan_that_extract_reads(tiny: Path, coarse_street: None) -> None:
    pytest.importorskip("matplotlib")
    status, output = run("demo", "--output", "here", "--backbone", tiny, "--seed", "3")
    assert status == 0
    assert len(output.splitlines()) == 4
    for part in ("points/s", "ms", str(Path("here/features.png")), "clever3d extract"):
        assert part in output
    assert sorted(path.name for path in Path("here").iterdir()) == ["features.npz", "features.png", "scan.bin"]
    assert run("extract", "here/scan.bin", "-o", "again.npz", "--backbone", tiny)[0] == 0
    with np.load("here/features.npz") as first, np.load("again.npz") as second:
        np.testing.assert_array_equal(first["xyz"], second["xyz"])
        np.testing.assert_allclose(first["features"], second["features"], rtol=1e-4, atol=1e-5)


def test_demo_that_fails_leaves_no_folder() -> None:
    status, output = run("demo", "--backbone", "no-such-backbone")
    assert status == 2
    assert "no-such-backbone" in output
    assert files() == []


def test_demo_cannot_write_into_a_file() -> None:
    Path("taken").touch()
    status, output = run("demo", "--output", "taken")
    assert status == 2
    assert "taken" in output


def test_demo_with_the_bundled_backbone(coarse_street: None) -> None:
    if not clever3d.backbone_info("minkunet-dinov2-s").has_weights:
        pytest.skip("no trained weights are bundled")
    status, output = run("demo")
    assert status == 0
    assert Path("clever3d-demo/features.png").stat().st_size > 50_000
    assert "minkunet-dinov2-s" in output
