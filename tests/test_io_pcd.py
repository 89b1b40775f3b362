"""PCD files made by hand, by pypcd4, and by other writers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from clever3d.errors import DataError, MissingExtraError
from clever3d.io import read_points


def street(n: int) -> np.ndarray:
    """x y z intensity in 0..1 of a made-up scan: [n, 4] float32."""
    rng = np.random.default_rng(0)
    return np.column_stack([rng.normal(0, [20, 20, 1], (n, 3)), rng.random(n)]).astype(np.float32)


ASCII = """# .PCD v.7 - Point Cloud Data file format
VERSION .7
FIELDS x y z intensity
SIZE 4 4 4 4
TYPE F F F F
COUNT 1 1 1 1
WIDTH 3
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 3
DATA ascii
1.5 -2 0.25 51
nan nan nan 0
4 5 6 255
"""
ASCII_XYZ = np.array([[1.5, -2, 0.25], [np.nan] * 3, [4, 5, 6]])


def test_pcd_ascii_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.pcd").write_text(ASCII)
    cloud = read_points(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.xyz, ASCII_XYZ)
    np.testing.assert_allclose(cloud.intensity, [0.2, 0, 1])


def test_pcd_without_count_with_another_version_and_order(tmp_path: Path) -> None:
    text = ASCII.replace("COUNT 1 1 1 1\n", "").replace("VERSION .7", "VERSION 0.5").replace("DATA ascii", "DATA ASCII")
    (tmp_path / "a.pcd").write_text(text.replace("x y z intensity", "i z y X"))
    cloud = read_points(tmp_path / "a.pcd", intensity_scale=255)
    np.testing.assert_array_equal(cloud.xyz[[0, 2]], [[51, 0.25, -2], [255, 6, 5]])
    np.testing.assert_allclose(cloud.intensity[[0, 2]], np.array([1.5, 4]) / 255, rtol=1e-6)  # type: ignore[index]


def test_pcd_of_one_point(tmp_path: Path) -> None:
    text = ASCII.replace("WIDTH 3", "WIDTH 1").replace("POINTS 3", "POINTS 1")
    (tmp_path / "a.pcd").write_text("\n".join(text.splitlines()[:12]) + "\n")
    np.testing.assert_array_equal(read_points(tmp_path / "a.pcd").xyz, ASCII_XYZ[:1])


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("name", ["intensity", "reflectivity", "i", None])
def test_pcd_written_by_pypcd4(tmp_path: Path, encoding: str, name: str | None) -> None:
    pypcd4 = pytest.importorskip("pypcd4")
    rows = street(200)
    names, types = ["x", "y", "z"], [np.float32, np.float64, np.float32]
    columns = [rows[:, 0], rows[:, 1].astype(np.float64), rows[:, 2]]
    if name:
        names, types, columns = [*names, name], [*types, np.uint8], [*columns, np.arange(200, dtype=np.uint8)]
    pcd = pypcd4.PointCloud.from_points(columns, names, types)
    pcd.save(tmp_path / "p.pcd", encoding=pypcd4.Encoding(encoding))
    cloud = read_points(tmp_path / "p.pcd")
    np.testing.assert_allclose(cloud.xyz, rows[:, :3], rtol=1e-6)
    assert encoding in cloud.source
    if name:
        np.testing.assert_allclose(cloud.intensity, np.arange(200) / 255, rtol=1e-6)
    else:
        assert cloud.intensity is None


PADDED = np.dtype([("xyz", "<f4", 3), ("a", "u1", 4), ("intensity", "<f4"), ("time", "<f8"), ("b", "u1", 4)])
PADDED_HEADER = """VERSION 0.7
FIELDS x y z _ intensity _ time _
SIZE 4 4 4 1 4 1 8 1
TYPE F F F U F U F U
COUNT 1 1 1 4 1 0 1 4
WIDTH 50
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 50
DATA binary
"""


def padded_records() -> np.ndarray:
    records = np.zeros(50, PADDED)
    records["xyz"], records["intensity"] = street(50)[:, :3], np.arange(50)
    return records


def test_pcd_with_padding_of_count_zero_and_bytes_after_the_end(tmp_path: Path) -> None:
    records = padded_records()
    (tmp_path / "p.pcd").write_bytes(PADDED_HEADER.encode() + records.tobytes() + bytes(1000))
    cloud = read_points(tmp_path / "p.pcd")
    np.testing.assert_array_equal(cloud.xyz, records["xyz"])
    np.testing.assert_allclose(cloud.intensity, np.arange(50) / 255, rtol=1e-6)


@pytest.mark.parametrize("cut", [1, PADDED.itemsize, 20 * PADDED.itemsize])
def test_pcd_binary_truncated_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "p.pcd").write_bytes(PADDED_HEADER.encode() + padded_records().tobytes()[:-cut])
    with pytest.raises(DataError, match="truncated"):
        read_points(tmp_path / "p.pcd")


@pytest.mark.parametrize("encoding", ["ascii", "binary_compressed"])
def test_pcd_of_pypcd4_truncated_is_refused(tmp_path: Path, encoding: str) -> None:
    pypcd4 = pytest.importorskip("pypcd4")
    pcd = pypcd4.PointCloud.from_xyzi_points(street(300))
    pcd.save(tmp_path / "p.pcd", encoding=pypcd4.Encoding(encoding))
    whole = (tmp_path / "p.pcd").read_bytes()
    start = whole.index(b"DATA ") + 30
    for keep in (start, (start + len(whole)) // 2, len(whole) - 40):
        (tmp_path / "cut.pcd").write_bytes(whole[:keep])
        with pytest.raises(DataError, match="truncated"):
            read_points(tmp_path / "cut.pcd")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n" * 3, "not a PCD file"),
        ("\x00\x01\x02", "not a PCD file"),
        ("VERSION 0.7\nDATA ascii\n", "lacks FIELDS"),
        (ASCII.replace("x y z", "x y q"), "missing: z"),
        (ASCII.replace("SIZE 4 4 4 4", "SIZE 4 4 4"), "differ in length"),
        (ASCII.replace("POINTS 3", "POINTS 0"), "no points"),
        (ASCII.replace("POINTS 3", "POINTS many"), "not valid PCD"),
        (ASCII.replace("DATA ascii", "DATA zip"), "not valid PCD"),
        (ASCII.replace("TYPE F F F F", "TYPE F F F C"), "not valid PCD"),
    ],
)
def test_pcd_that_is_not_one_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.pcd").write_text(text)
    with pytest.raises(DataError, match=message):
        read_points(tmp_path / "a.pcd")


def test_pcd_without_pypcd4_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pcd").write_text(ASCII)
    monkeypatch.setitem(sys.modules, "pypcd4", None)
    with pytest.raises(MissingExtraError, match=r'pip install "clever3d\[io\]"'):
        read_points(tmp_path / "a.pcd")


def test_real_sustech_scan_with_padding(shared_data: Path) -> None:
    path = next(shared_data.glob("sustechpoints/lidar/*.pcd"))
    cloud = read_points(path)
    content = path.read_bytes()
    start = content.index(b"DATA binary\n") + len(b"DATA binary\n")
    records = np.frombuffer(content[start : start + 66_781 * 48], "<f4").reshape(66_781, 12)
    np.testing.assert_array_equal(cloud.xyz, records[:, :3])
    np.testing.assert_array_equal(cloud.intensity, records[:, 4] / np.float32(255))


def test_real_pcd_without_intensity(shared_data_more: Path) -> None:
    cloud = read_points(next(shared_data_more.glob("kitti_xyz_only/points/000035.pcd")))
    assert cloud.xyz.shape == (121_784, 3)
    assert cloud.intensity is None
