"""Readers and writers, held to files made by numpy, pypcd4, by hand, and to real scans."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clever3d.errors import DataError, InputError
from clever3d.io import atomic_path, check_output, read_bin, read_points, save_npz, to_flu


def street(n: int, seed: int = 0) -> np.ndarray:
    """x y z intensity in 0..1 of a made-up scan: [n, 4] float32."""
    rng = np.random.default_rng(seed)
    xyz = rng.normal(0, [20, 20, 1], (n, 3))
    return np.column_stack([xyz, rng.integers(0, 100, n) / 100]).astype(np.float32)


def nuscenes(n: int, seed: int = 0) -> np.ndarray:
    """x y z intensity in 0..255 ring of a made-up scan: [n, 5] float32."""
    rows, rng = street(n, seed), np.random.default_rng(seed)
    rows[:, 3] = rng.integers(0, 256, n)
    return np.column_stack([rows, rng.integers(0, 32, n)]).astype(np.float32)


def write(path: Path, rows: np.ndarray) -> Path:
    rows.tofile(path)
    return path


# .bin


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n", [5, 20, 1000])
def test_bin_columns_are_found_where_the_size_fits_both(tmp_path: Path, n: int, seed: int) -> None:
    kitti = read_points(write(tmp_path / "k.bin", street(n, seed)))
    assert "4 columns" in kitti.source
    np.testing.assert_array_equal(kitti.xyz, street(n, seed)[:, :3])
    rows = nuscenes(4 * n, seed)
    other = read_points(write(tmp_path / "n.pcd.bin", rows))
    assert "5 columns" in other.source
    np.testing.assert_array_equal(other.xyz, rows[:, :3])


def test_bin_of_nuscenes_says_its_frame_and_scales_intensity(tmp_path: Path) -> None:
    rows = nuscenes(100)
    cloud = read_points(write(tmp_path / "n.bin", rows))
    assert cloud.frame == "rfu"
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, rows[:, 3].astype(np.float64) / 255, rtol=1e-6)
    assert "divided by 255" in cloud.source


def test_bin_points_that_are_not_finite_stay(tmp_path: Path) -> None:
    rows = street(100)
    rows[3, 0], rows[7, 2], rows[9, 3] = np.nan, np.inf, np.nan
    cloud = read_points(write(tmp_path / "k.bin", rows))
    np.testing.assert_array_equal(cloud.xyz, rows[:, :3])
    np.testing.assert_array_equal(cloud.intensity, rows[:, 3])
    assert cloud.xyz.dtype == np.float32
    assert cloud.xyz.flags.c_contiguous


def test_bin_that_may_be_either_asks_for_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "zeros.bin", np.zeros(40, np.float32))
    with pytest.raises(DataError, match="--columns"):
        read_points(path)
    assert len(read_points(path, columns=4).xyz) == 10
    assert len(read_points(path, columns=5).xyz) == 8


@pytest.mark.parametrize("columns", [3, 6])
def test_bin_with_other_columns_asks_for_them_and_takes_them(tmp_path: Path, columns: int) -> None:
    rows = np.column_stack([street(60), street(60, seed=1)])[:, :columns]
    path = write(tmp_path / "k.bin", rows)
    with pytest.raises(DataError, match="--columns"):
        read_points(path)
    cloud = read_points(path, columns=columns)
    np.testing.assert_array_equal(cloud.xyz, rows[:, :3])
    assert (cloud.intensity is None) == (columns == 3)


def test_bin_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not look like"):
        read_points(write(tmp_path / "doubles.bin", street(100).astype(np.float64)))


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 8, 12])
def test_bin_cut_inside_a_row_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "k.bin"
    path.write_bytes(street(100).tobytes()[:-cut])
    with pytest.raises(DataError, match="truncated"):
        read_points(path)
    with pytest.raises(DataError, match="truncated"):
        read_bin(path, 4)


def test_columns_that_cannot_be_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", street(10))
    with pytest.raises(InputError, match="columns=5"):
        read_points(tmp_path / "k.npy", columns=5)
    with pytest.raises(InputError, match="at least 3"):
        read_points(write(tmp_path / "k.bin", street(10)), columns=2)


# intensity


@pytest.mark.parametrize(
    ("high", "scale", "expected"), [(0.99, None, 0.99), (1.0, None, 1.0), (204.0, None, 0.8), (3.0, 4.0, 0.75)]
)
def test_intensity_is_scaled_by_its_maximum_or_as_asked(
    tmp_path: Path, high: float, scale: float | None, expected: float
) -> None:
    rows = street(50)
    rows[:, 3] *= high / rows[:, 3].max()
    np.save(tmp_path / "k.npy", rows)
    cloud = read_points(tmp_path / "k.npy", intensity_scale=scale)
    assert cloud.intensity is not None
    assert float(cloud.intensity.max()) == pytest.approx(expected)


@pytest.mark.parametrize("value", [-3.0, 3000.0])
def test_intensity_of_unknown_scale_asks_for_it(tmp_path: Path, value: float) -> None:
    rows = street(50)
    rows[20, 3] = value
    np.save(tmp_path / "k.npy", rows)
    with pytest.raises(DataError, match="--intensity-scale"):
        read_points(tmp_path / "k.npy")
    cloud = read_points(tmp_path / "k.npy", intensity_scale=1000)
    assert cloud.intensity is not None
    assert cloud.intensity[20] == (0 if value < 0 else 1)


def test_intensity_scale_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="above 0"):
        read_points(write(tmp_path / "k.bin", street(10)), intensity_scale=0)


# .npy


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i2", "i8"])
def test_npy_of_any_number_type_is_read(tmp_path: Path, dtype: str) -> None:
    rows = np.round(street(30)).astype(dtype)
    np.save(tmp_path / "k.npy", rows)
    cloud = read_points(tmp_path / "k.npy")
    assert cloud.xyz.dtype == np.float32
    np.testing.assert_array_equal(cloud.xyz, rows[:, :3].astype(np.float64))


def test_npy_without_a_fourth_column_has_no_intensity(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", street(30)[:, :3])
    assert read_points(tmp_path / "k.npy").intensity is None


def test_npy_with_fields_is_read_by_name(tmp_path: Path) -> None:
    rows = street(30)
    fields = np.zeros((5, 6), dtype=[("ring", "u2"), ("z", "f4"), ("y", "f8"), ("x", "f4"), ("Reflectivity", "u1")])
    fields["x"], fields["y"], fields["z"] = (rows[:, i].reshape(5, 6) for i in range(3))
    fields["Reflectivity"] = np.arange(30).reshape(5, 6) * 8
    np.save(tmp_path / "k.npy", fields)
    cloud = read_points(tmp_path / "k.npy")
    np.testing.assert_array_equal(cloud.xyz, rows[:, :3])
    np.testing.assert_allclose(cloud.intensity, np.arange(30) * 8 / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2)), "shape"),
        (np.zeros(12), "shape"),
        (np.zeros((4, 500)), "transpose"),
        (np.zeros((0, 4)), "no points"),
        (np.zeros((4, 4), complex), "complex"),
        (np.array([["a"] * 3]), "type"),
        (np.array([{"x": 1}], dtype=object), "numbers"),
        (np.zeros(3, dtype=[("x", "f4"), ("z", "f4")]), "missing: y"),
    ],
)
def test_npy_of_something_else_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(DataError, match=message):
        read_points(tmp_path / "k.npy")


def test_npy_truncated_or_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", street(100))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        read_points(tmp_path / "cut.npy")
    np.savez(tmp_path / "archive.npz", street(5))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(DataError, match="npz"):
        read_points(tmp_path / "archive.npy")


# any file


@pytest.mark.parametrize("name", ["a.bin", "a.npy", "a.pcd"])
def test_missing_folder_and_empty_are_told_apart(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="does not exist"):
        read_points(path)
    path.touch()
    with pytest.raises(DataError, match="empty"):
        read_points(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="folder"):
        read_points(path)


@pytest.mark.parametrize("name", ["a.ply", "scan"])
def test_unknown_suffix_lists_the_supported_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"\.bin, \.npy, \.pcd"):
        read_points(tmp_path / name)


def test_suffix_may_be_upper_case(tmp_path: Path) -> None:
    assert len(read_points(write(tmp_path / "A.BIN", street(10))).xyz) == 10


# frames


@pytest.mark.parametrize(
    ("frame", "ahead", "left"),
    [
        ("flu", [1, 0, 0], [0, 1, 0]),
        ("rfu", [0, 1, 0], [-1, 0, 0]),
        ("BRU", [-1, 0, 0], [0, -1, 0]),
        ("rdf", [0, 0, 1], [-1, 0, 0]),
    ],
)
def test_to_flu_turns_ahead_to_x_and_left_to_y(frame: str, ahead: list[float], left: list[float]) -> None:
    points = np.array([ahead, left], dtype=np.float32)
    np.testing.assert_array_equal(to_flu(points, frame), [[1, 0, 0], [0, 1, 0]])


def test_to_flu_takes_each_frame_that_can_be() -> None:
    points = street(20)[:, :3]
    good = 0
    for letters in itertools.product("fblrud", repeat=3):
        frame = "".join(letters)
        try:
            turned = to_flu(points, frame)
        except InputError as error:
            assert frame in str(error)
            continue
        good += 1
        np.testing.assert_array_equal(np.sort(np.abs(turned), axis=1), np.sort(np.abs(points), axis=1))
    assert good == 48  # the signed permutations of three axes


def test_to_flu_keeps_a_nan_in_its_own_axis() -> None:
    turned = to_flu(np.array([[1, np.nan, 3]], dtype=np.float32), "rfu")
    np.testing.assert_array_equal(turned, [[np.nan, -1, 3]])


@pytest.mark.parametrize("frame", ["", "fl", "flux", "fbu", "xyz"])
def test_to_flu_refuses_what_is_no_frame(frame: str) -> None:
    with pytest.raises(InputError, match="rfu"):
        to_flu(street(2)[:, :3], frame)


# output


def test_save_npz_is_read_back_by_numpy(tmp_path: Path) -> None:
    save_npz(tmp_path / "out.npz", {"a": street(5), "meta": np.array("{}")})
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["a"], street(5))
        assert archive["meta"].item() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out.npz").write_text("old")
    with pytest.raises(error), atomic_path(tmp_path / "out.npz") as draft:
        draft.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    assert (tmp_path / "out.npz").read_text() == "old"


def test_no_space_left_is_an_error_without_leftovers(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom clever3d.io import save_npz\n"
        "from clever3d.errors import DataError\n"
        "try: save_npz(sys.argv[1], {'a': np.zeros(100000)})\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out.npz"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "out.npz cannot be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_check_output_refuses_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for path, message in [
        ("out.txt", r"\.npz"),
        ("folder.npz", "folder"),
        ("nowhere/out.npz", "no folder"),
        ("file/out.npz", "no folder"),
    ]:
        with pytest.raises(DataError, match=message):
            check_output(tmp_path / path, (".npz",))
    assert check_output(tmp_path / "out.npz", (".npz",)) == tmp_path / "out.npz"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.npz"}


def test_io_needs_nothing_else_of_the_package() -> None:
    code = (
        "import sys, clever3d.io, clever3d.io.pcd\n"
        "others = [m for m in sys.modules if m.startswith('clever3d.')]\n"
        "print([m for m in others if m.split('.')[1] not in ('io', 'errors', '_version')], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


# real scans


def test_real_kitti_scans_are_kept_as_they_are(shared_data: Path, shared_data_more: Path) -> None:
    scans = sorted(shared_data.glob("kitti/training/velodyne/*.bin"))[::4]
    scans += sorted(shared_data_more.glob("kitti_drives/training/velodyne/*.bin"))[::10]
    scans += sorted(shared_data_more.glob("semantickitti/sequences/00/velodyne/*.bin"))
    assert len(scans) > 15
    for path in scans:
        cloud = read_points(path)
        raw = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, 4)
        np.testing.assert_array_equal(np.column_stack([cloud.xyz, cloud.intensity]), raw, err_msg=str(path))
        assert cloud.frame == "flu"


def test_real_nuscenes_scan(shared_data: Path) -> None:
    cloud = read_points(next(shared_data.glob("nuscenes/samples/LIDAR_TOP/*.pcd.bin")))
    assert cloud.frame == "rfu"
    assert cloud.xyz.shape == (34_688, 3)
    assert cloud.intensity is not None
    assert cloud.intensity.max() == 1
    assert np.unique(cloud.intensity).size <= 256
