"""RELLIS-3D: axes, intensity and projections worked out by hand, and the real frame against its pixel labels."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_kitti import write_rellis, write_rellis_calibration, write_rellis_scan

from clever3d.datasets import IGNORE, Camera, Rellis3D, open_dataset
from clever3d.datasets.geometry import apply, inverse
from clever3d.datasets.rellis3d_labels import RELLIS3D
from clever3d.errors import DataError, InputError


def flat(folder: Path) -> Path:
    """A folder of the shape of the repository's example: one frame, the label image beside the image."""
    folder.mkdir(parents=True)
    write_rellis_scan(folder / "000104.bin")
    np.array([3, 0, 4], dtype="<u4").tofile(folder / "000104.label")
    (folder / "frame000104-1581624663_149.jpg").write_bytes(b"never decoded here")
    (folder / "frame000104-1581624663_149.png").write_bytes(b"the pixels' labels")
    write_rellis_calibration(folder)
    return folder


# ---------------------------------------------------------------- what a frame has


def test_points_are_turned_to_flu_and_every_slot_stays(tmp_path: Path) -> None:
    cloud = Rellis3D(write_rellis(tmp_path))[0].points()
    np.testing.assert_array_equal(cloud.xyz, [[10, 2, 1], [0, 0, 0], [-5, -1, -1]])
    assert cloud.xyz.dtype == np.float32


def test_a_signal_of_1000_is_intensity_one_and_brighter_ones_are_cut(tmp_path: Path) -> None:
    cloud = Rellis3D(write_rellis(tmp_path))[0].points()
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, [0.25, 0, 1], rtol=1e-6)
    assert cloud.intensity.dtype == np.float32


def test_projection_uses_the_inverse_of_transforms_yaml(tmp_path: Path) -> None:
    frame = open_dataset(f"rellis3d:{write_rellis(tmp_path)}#distortion=no")[0]
    # By hand: (10, 2, 1) is (-10, -2, 1) in the file. The camera is at (-0.2, 0.1, -0.1), its axes are y, -z, -x of the
    # LiDAR: (-9.8, -2.1, 1.1) from there is 2.1 to the left, 1.1 up and 9.8 ahead.
    pixels, depth = frame.cameras[0].project(frame.points().xyz)
    np.testing.assert_allclose(depth[0], 9.8, atol=1e-9)
    np.testing.assert_allclose(pixels[0], (960 - 2800 * 2.1 / 9.8, 600 - 2700 * 1.1 / 9.8), atol=1e-6)
    assert depth[2] < 0
    np.testing.assert_array_equal(frame.cameras[0].intrinsics, [[2800, 0, 960], [0, 2700, 600], [0, 0, 1]])


def test_the_lens_bends_rays_unless_told_not_to(tmp_path: Path) -> None:
    root = write_rellis(tmp_path)
    lens = Rellis3D(root)[0].cameras[0].distortion
    assert lens is not None
    assert lens.model == "pinhole"
    assert lens.coefficients == (-0.134313, -0.025905, 0.002181, 0.00084, 0.0)
    assert Rellis3D(root, distortion=False)[0].cameras[0].distortion is None
    with pytest.raises(InputError, match=r"rellis3d: distortion='maybe' cannot be read; 'maybe' is neither yes nor no"):
        open_dataset(f"rellis3d:{root}#distortion=maybe")


def test_the_images_time_is_in_its_name(tmp_path: Path) -> None:
    first, second = list(Rellis3D(write_rellis(tmp_path), sequences=("00001",)))
    assert first.cameras[0].timestamp == 1581624663.043
    assert second.cameras[0].timestamp == 1581624663.044
    assert first.timestamp is None
    assert first.cameras[0].image_size is None


def test_labels_belong_to_slots_and_void_is_ignored(tmp_path: Path) -> None:
    frame = pickle.loads(pickle.dumps(Rellis3D(write_rellis(tmp_path))[0]))
    labels = frame.labels()
    np.testing.assert_array_equal(labels.semantic, [3, 0, 4])
    np.testing.assert_array_equal(labels.train_ids, [0, IGNORE, 1])
    assert frame.boxes() is None


def test_poses_lead_from_the_lidar_as_the_file_has_it(tmp_path: Path) -> None:
    sequence = write_rellis(tmp_path) / "Rellis-3D" / "00000"
    assert Rellis3D(tmp_path)[0].points_to_world is None
    identity = "1 0 0 0 0 1 0 0 0 0 1 0\n"
    (sequence / "poses.txt").write_text(identity * 104 + "0 -1 0 7 1 0 0 8 0 0 1 9\n")
    first, second = list(Rellis3D(tmp_path, sequences=("00000",)))
    assert first.points_to_world is not None
    assert second.points_to_world is not None
    point = np.array([[10.0, 2, 1]])  # (-10, -2, 1) in the file
    np.testing.assert_allclose(apply(first.points_to_world, point), [[-10, -2, 1]], atol=1e-12)
    np.testing.assert_allclose(apply(second.points_to_world, point), [[2 + 7, -10 + 8, 1 + 9]], atol=1e-12)
    (sequence / "poses.txt").write_text(identity * 104)
    with pytest.raises(DataError, match=r"poses\.txt has 104 lines, but there is a scan 104"):
        Rellis3D(tmp_path)[1]


def test_the_label_table_is_that_of_rellis_yaml() -> None:
    assert RELLIS3D.classes == (
        "grass", "tree", "pole", "water", "vehicle", "log", "person", "fence", "bush", "concrete", "barrier", "puddle",
        "mud", "rubble",
    )  # fmt: skip
    listed = {
        0: 0, 1: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 0, 8: 5, 9: 0, 10: 0, 12: 0, 15: 6, 17: 7, 18: 8, 19: 9, 23: 10, 27: 11,
        31: 12, 33: 13, 34: 14,
    }  # fmt: skip
    assert set(RELLIS3D.raw_names) == set(listed)
    wanted = [IGNORE if value == 0 else value - 1 for value in listed.values()]
    np.testing.assert_array_equal(RELLIS3D.train_ids(np.array(list(listed))), wanted)


def test_colours_are_red_green_blue_although_their_file_says_otherwise() -> None:
    color = dict(zip(RELLIS3D.classes, RELLIS3D.colors, strict=True))
    assert color["water"] == (0, 128, 255)
    assert color["mud"] == (99, 66, 34)  # brown
    assert color["vehicle"] == (255, 255, 0)


# ---------------------------------------------------------------- layouts and options


def test_the_release_and_the_example_are_read_alike(tmp_path: Path) -> None:
    release = write_rellis(tmp_path / "release")
    example = flat(tmp_path / "example")
    assert Rellis3D(release).ids() == Rellis3D(release / "Rellis-3D").ids()
    assert Rellis3D(release).ids() == ["00000_000103", "00000_000104", "00001_000103", "00001_000104"]
    assert Rellis3D(example).ids() == ["000104"]
    for root, name in ((release, "00000"), (release / "Rellis-3D", "00000"), (example, "example")):
        data = open_dataset(root)
        assert data.name == "rellis3d"
        assert data.ids() == [frame.id for frame in data]
        assert data[0].scene == name
    one, two = Rellis3D(release)[1], Rellis3D(example)[0]
    np.testing.assert_array_equal(one.cameras[0].points_to_camera, two.cameras[0].points_to_camera)
    assert two.cameras[0].image_path.suffix == ".jpg"
    with pytest.raises(InputError, match="no sequences and no split"):
        Rellis3D(example, split="train")


def test_one_calibration_may_lie_above_the_sequences(tmp_path: Path) -> None:
    folder = write_rellis(tmp_path) / "Rellis-3D"
    wanted = Rellis3D(tmp_path)[3].cameras[0].points_to_camera
    for name in ("transforms.yaml", "camera_info.txt"):
        (folder / "00000" / name).rename(folder / name)
        (folder / "00001" / name).unlink()
    np.testing.assert_array_equal(Rellis3D(tmp_path)[3].cameras[0].points_to_camera, wanted)


def test_a_split_is_what_its_list_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rellis(tmp_path) / "Rellis-3D" / "pt_val.lst"
    line = "{0}/os1_cloud_node_kitti_bin/{1}.bin {0}/os1_cloud_node_semantickitti_label_id/{1}.label"
    path.write_text("\n".join(line.format(*pair) for pair in (("00001", "000104"), ("00000", "000103"))))
    assert open_dataset(f"rellis3d:{tmp_path}#split=val").ids() == ["00000_000103", "00001_000104"]
    assert Rellis3D(tmp_path, split="val", sequences=("00001",)).ids() == ["00001_000104"]
    assert not caplog.records
    with pytest.raises(DataError, match=r"pt_train\.lst cannot be read .*LiDAR Split File"):
        Rellis3D(tmp_path, split="train")
    path.write_text(path.read_text() + "\n" + line.format("00004", "000001"))
    assert len(Rellis3D(tmp_path, split="val")) == 2
    assert "names the sequences 00004, which are not there" in caplog.text
    path.write_text(line.format("00000", "000105"))
    with pytest.raises(DataError, match=r"pt_val\.lst: line 1 names scan 105 of .*00000, which is missing"):
        Rellis3D(tmp_path, split="val")
    path.write_text("000103.bin\n")
    with pytest.raises(DataError, match=r"pt_val\.lst: line 1 names no scan: '000103\.bin'"):
        Rellis3D(tmp_path, split="val")


# ---------------------------------------------------------------- what may be missing, and what may not


def test_without_images_there_are_no_cameras_and_no_calibration_is_needed(tmp_path: Path) -> None:
    folder = write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000"
    (folder / "pylon_camera_node").rename(folder / "elsewhere")
    (folder / "transforms.yaml").unlink()
    assert Rellis3D(tmp_path)[0].cameras == ()
    with pytest.raises(DataError, match=r"no camera 'pylon_camera_node'; it has none"):
        Rellis3D(tmp_path, cameras=("pylon_camera_node",))


def test_images_that_nobody_wants_need_no_calibration(tmp_path: Path) -> None:
    folder = write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000"
    (folder / "transforms.yaml").unlink()
    with pytest.raises(DataError, match=r"00000/transforms\.yaml does not exist.*cameras=\(\)"):
        Rellis3D(tmp_path)
    assert Rellis3D(tmp_path, cameras=())[0].cameras == ()


@pytest.mark.parametrize(
    ("folder", "file", "named"),
    [
        ("os1_cloud_node_semantickitti_label_id", "000104.label", r"label_id/000104\.label is missing"),
        ("pylon_camera_node", "frame000104-1581624663_044.jpg", r"pylon_camera_node/frame000104-\*\.jpg is missing"),
    ],
)
def test_the_file_that_a_scan_lacks_is_named(tmp_path: Path, folder: str, file: str, named: str) -> None:
    (write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000" / folder / file).unlink()
    with pytest.raises(DataError, match=rf"{named}, but .*000104\.bin exists"):
        Rellis3D(tmp_path)


def test_two_images_of_one_frame_and_foreign_names_are_refused(tmp_path: Path) -> None:
    images = write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000" / "pylon_camera_node"
    (images / "frame000104-1581624663_999.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"999\.jpg and frame000104-1581624663_044\.jpg have the same frame number"):
        Rellis3D(tmp_path)
    (images / "frame000104-1581624663_999.jpg").rename(images / "holiday.jpg")
    with pytest.raises(DataError, match=r"holiday\.jpg: the name is not frameNUMBER"):
        Rellis3D(tmp_path)
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="pylon_camera_node holds no image"):
        Rellis3D(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("transforms.yaml", "os1_cloud_node-pylon", "vel2os1", "has no os1_cloud_node-pylon_camera_node"),
        ("transforms.yaml", "w: 0.5", "w: half", "has no os1_cloud_node-pylon_camera_node .*half"),
        ("transforms.yaml", "    w: 0.5\n", "", "has no os1_cloud_node-pylon_camera_node .*'w'"),
        ("transforms.yaml", "  q:", "  q: [", "has no os1_cloud_node-pylon_camera_node"),
        ("transforms.yaml", "x: -0.2", "x: .inf", ": os1_cloud_node-pylon_camera_node: expected 4 x 4 finite"),
        ("camera_info.txt", "2800 ", "", ": line 1 has 3 values, expected 4"),
        ("camera_info.txt", "2800 ", "-2800 ", "has to be one line, fx fy cx cy"),
    ],
)
def test_a_damaged_calibration_is_named(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    path = write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"00000/{name}:? ?{message}"):
        Rellis3D(tmp_path)


def test_a_quaternion_of_zeros_is_named(tmp_path: Path) -> None:
    path = write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000" / "transforms.yaml"
    path.write_text(path.read_text().replace("0.5", "0"))
    with pytest.raises(
        DataError, match=r"transforms\.yaml: os1_cloud_node-pylon_camera_node\.q: the quaternion .* is zero"
    ):
        Rellis3D(tmp_path)


def test_labels_of_another_length_and_unknown_ones_are_named(tmp_path: Path) -> None:
    folder = write_rellis(tmp_path, ("00000",)) / "Rellis-3D" / "00000" / "os1_cloud_node_semantickitti_label_id"
    np.array([3, 0], dtype="<u4").tofile(folder / "000103.label")
    with pytest.raises(DataError, match=r"000103\.label has 2 labels, but .*000103\.bin has 3 points"):
        Rellis3D(tmp_path)[0].labels()
    np.array([3, 2, 4], dtype="<u4").tofile(folder / "000103.label")
    labels = Rellis3D(tmp_path)[0].labels()
    assert labels is not None
    with pytest.raises(DataError, match=r"000103\.label: rellis3d has no label 2"):
        _ = labels.train_ids


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no 0000N/os1_cloud_node_kitti_bin"):
        Rellis3D(tmp_path)
    assert not Rellis3D.looks_like(tmp_path)
    with pytest.raises(DataError, match=r"no sequence '00007' with os1_cloud_node_kitti_bin \(there: 00000, 00001\)"):
        Rellis3D(write_rellis(tmp_path), sequences=("00007",))


# ---------------------------------------------------------------- the real frame


def agreement(camera: Camera, xyz: np.ndarray, labels: np.ndarray, pixels: np.ndarray) -> tuple[int, float]:
    """How many labelled points fall into the image, and the share whose pixel has their label."""
    (uv, depth), (height, width) = camera.project(xyz), pixels.shape
    inside = (depth > 0) & (uv >= 0).all(axis=1) & (uv < [width, height]).all(axis=1)
    inside &= (labels > 0) & (np.abs(xyz).max(axis=1) > 0.1)
    u, v = uv[inside].astype(int).T
    return int(inside.sum()), float((pixels[v, u] == labels[inside]).mean())


def test_the_real_frame_agrees_with_its_pixel_labels_as_listed(shared_data: Path) -> None:
    root = shared_data / "rellis3d"
    listed = json.loads((shared_data / "expected.json").read_text())["figures"]["rellis3d/000104"]
    frame = open_dataset(f"rellis3d:{root}#distortion=no")[0]
    cloud, labels = frame.points(), frame.labels()
    assert labels is not None
    assert len(cloud.xyz) == len(labels) == listed["n_points"]
    assert int((cloud.xyz != 0).any(axis=1).sum()) == listed["n_nonzero"]
    assert np.unique(labels.semantic).tolist() == listed["n_labels"]
    assert (labels.train_ids[(cloud.xyz == 0).all(axis=1)] == IGNORE).all()
    pixels = np.array(Image.open(frame.cameras[0].image_path.with_suffix(".png")))
    camera = frame.cameras[0]
    count, share = agreement(camera, cloud.xyz, labels.semantic, pixels)
    assert count == listed["in_image_labelled"]
    assert share == pytest.approx(listed["agree_inverse"], abs=1e-9)
    # The matrix of transforms.yaml as it stands, M, puts points into the image too, but the wrong ones. Ours is M^-1
    # after half a turn about z, from FLU to the file's axes.
    half_turn = np.diag([-1.0, -1, 1, 1])
    forward = replace(camera, points_to_camera=half_turn @ inverse(camera.points_to_camera) @ half_turn)
    assert agreement(forward, cloud.xyz, labels.semantic, pixels)[1] == pytest.approx(listed["agree_forward"], abs=1e-9)
    bent = open_dataset(root)[0].cameras[0]
    assert agreement(bent, cloud.xyz, labels.semantic, pixels)[1] == pytest.approx(0.767, abs=1e-3)


def test_the_real_signal_keeps_its_contrast(shared_data: Path) -> None:
    cloud = open_dataset(shared_data / "rellis3d")[0].points()
    assert cloud.intensity is not None
    returned = cloud.intensity[(cloud.xyz != 0).any(axis=1)]
    assert float(np.median(returned)) == pytest.approx(0.201, abs=1e-6)
    assert float(returned.max()) == pytest.approx(0.754, abs=1e-6)
    # the sensor counts photons: whole numbers
    np.testing.assert_allclose(returned * 1000, np.round(returned * 1000), atol=1e-3)
