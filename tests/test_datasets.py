"""What all data sets share: names and options, laziness, pickling, sweeps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_kitti import write_kitti, write_kitti_raw, write_rellis, write_semantickitti
from small_nuscenes import write_nuscenes

from clever3d.datasets import Dataset, Frame, KittiObject, NuScenes, Sweep, open_dataset
from clever3d.datasets.base import names, require_unique, wanted_cameras
from clever3d.datasets.geometry import rigid
from clever3d.errors import DataError, InputError, UnknownNameError
from clever3d.io import PointCloud

# ---------------------------------------------------------------- tiny data sets with round numbers


WRITERS: dict[str, Callable[[Path], Path]] = {
    "kitti": write_kitti,
    "kitti_raw": write_kitti_raw,
    "nuscenes": write_nuscenes,
    "semantickitti": write_semantickitti,
    "rellis3d": write_rellis,
}

# ---------------------------------------------------------------- frames, order


def test_opening_reads_neither_points_nor_images(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    (root / "training" / "velodyne" / "001000.bin").write_bytes(b"")  # unreadable, and so are all the images
    frame = KittiObject(root)[0]
    assert frame.cameras[0].image_path.name == "001000.png"
    with pytest.raises(DataError, match=r"001000\.bin"):
        frame.points()


@pytest.mark.parametrize("name", WRITERS)
def test_frames_and_datasets_survive_pickling(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(f"{name}:{WRITERS[name](tmp_path / 'data')}")
    assert dataset.name == name
    frame: Frame = pickle.loads(pickle.dumps(dataset))[0]
    again: Frame = pickle.loads(pickle.dumps(frame))
    assert again.id == dataset[0].id
    assert again.dataset == name
    np.testing.assert_array_equal(again.points().xyz, dataset[0].points().xyz)
    np.testing.assert_array_equal(again.cameras[0].points_to_camera, dataset[0].cameras[0].points_to_camera)


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_those_of_the_frames(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(f"{name}:{WRITERS[name](tmp_path / 'data')}")
    ids = [frame.id for frame in dataset]
    assert len(ids) == len(set(ids)) == len(dataset)
    assert dataset.ids() == ids
    assert {frame.dataset for frame in dataset} == {name}


# ---------------------------------------------------------------- sweeps


def first_points(path: Path) -> PointCloud:
    xyz = np.loadtxt(path, dtype=np.float32, ndmin=2)
    return PointCloud(xyz, np.full(len(xyz), 0.5, dtype=np.float32), "text")


def frame_with_sweeps(folder: Path) -> Frame:
    (folder / "now").write_text("10 2 1\n0.5 0.5 0\n")
    (folder / "then").write_text("20 2 1\n0.9 -0.9 0\n0.9 1.1 0\n")
    sweep = Sweep(folder / "then", rigid([[0, -1, 0], [1, 0, 0], [0, 0, 1]], [1, 0, 0]), -0.5)
    return Frame("a", "s", (), folder / "now", "own", first_points, sweeps=(sweep,))


def test_earlier_points_are_moved_onto_the_frame_and_lose_the_vehicle(tmp_path: Path) -> None:
    cloud = frame_with_sweeps(tmp_path).accumulated()
    # A quarter turn and 1 m: (20, 2, 1) is (-2 + 1, 20, 1). (0.9, -0.9) is within 1 m in both axes: the vehicle's own.
    np.testing.assert_allclose(cloud.xyz, [[10, 2, 1], [0.5, 0.5, 0], [-1, 20, 1], [-0.1, 0.9, 0]], atol=1e-6)
    np.testing.assert_array_equal(cloud.time, [0, 0, -0.5, -0.5])  # type: ignore[arg-type]
    np.testing.assert_array_equal(cloud.intensity, [0.5] * 4)  # type: ignore[arg-type]
    assert cloud.xyz.dtype == np.float32


def test_a_frame_without_sweeps_accumulates_itself(tmp_path: Path) -> None:
    frame = replace(frame_with_sweeps(tmp_path), sweeps=())
    np.testing.assert_array_equal(frame.accumulated().xyz, frame.points().xyz)


def test_intensity_is_there_for_all_points_or_for_none(tmp_path: Path) -> None:
    def without(path: Path) -> PointCloud:
        cloud = first_points(path)
        return cloud if path.name == "now" else replace(cloud, intensity=None)

    assert replace(frame_with_sweeps(tmp_path), read=without).accumulated().intensity is None


def test_a_sweep_that_vanished_is_named(tmp_path: Path) -> None:
    frame = frame_with_sweeps(tmp_path)
    (tmp_path / "then").unlink()
    assert len(frame.points().xyz) == 2
    with pytest.raises(DataError, match=r"then does not exist; the own download is incomplete"):
        frame.accumulated()


# ---------------------------------------------------------------- what readers have in common


class Numbers(Dataset):
    """Frames that know only their number."""

    name = "numbers"
    LAYOUT = "none"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < 3:
            raise IndexError(index)
        return Frame(str(index), "s", (), Path("nowhere"), self.name, first_points)

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return False


def test_a_data_set_is_a_sequence_of_frames() -> None:
    data = Numbers()
    assert data.ids() == [frame.id for frame in data] == ["0", "1", "2"]
    assert data[0].labels() is data[0].boxes() is data.label_spec is None


def test_frames_of_one_id_are_refused() -> None:
    require_unique(["a", "b"], "here")
    with pytest.raises(DataError, match="here: two frames have the id 'a'; remove one of them"):
        require_unique(["a", "b", "a"], "here")


def test_cameras_are_all_or_those_wanted() -> None:
    assert wanted_cameras(None, ["left", "right"], "here") == ("left", "right")
    assert wanted_cameras(("right",), ["left", "right"], "here") == ("right",)
    assert wanted_cameras((), ["left"], "here") == ()
    with pytest.raises(DataError, match="here: there is no camera 'top'; it has left, right"):
        wanted_cameras(("left", "top"), ["left", "right"], "here")
    assert names(" left, right ,") == ("left", "right")
    assert names("") == ()


# ---------------------------------------------------------------- specs


@pytest.mark.parametrize("name", WRITERS)
def test_a_plain_path_is_guessed_from_its_folders(tmp_path: Path, name: str) -> None:
    assert open_dataset(WRITERS[name](tmp_path / "a folder#1: with signs")).name == name


def test_an_unknown_name_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'nuscene'.*did you mean 'nuscenes'"):
        open_dataset(f"nuscene:{tmp_path}")


@pytest.mark.parametrize("options", ["scenes=3", "scene=three", "scene=0", "scene="])
def test_a_wrong_option_is_an_input_error(tmp_path: Path, options: str) -> None:
    write_kitti(tmp_path)
    with pytest.raises(InputError, match=r"scene"):
        open_dataset(f"kitti:{tmp_path}#{options}")


# ---------------------------------------------------------------- broken data


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"gone does not exist; .* needs"):
        open_dataset(f"{name}:{tmp_path / 'gone'}")


def test_a_scan_that_vanished_is_named(tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path)
    frame = NuScenes(root)[0]
    frame.points_path.unlink()
    with pytest.raises(DataError, match=r"early does not exist; .*incomplete"):
        frame.points()


# ---------------------------------------------------------------- a folder that is none


def test_a_folder_of_data_sets_names_those_below(tmp_path: Path) -> None:
    for name in ("nuscenes", "kitti"):
        WRITERS[name](tmp_path / f"my {name}")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"cannot tell which data set {tmp_path} is; below it lie kitti, nuscenes: ")
    tried = text.partition("try ")[2]
    assert tried == f"kitti:{tmp_path / 'my kitti'}"
    assert open_dataset(tried).name == "kitti"


def test_a_folder_that_holds_no_data_set_is_said_in_short(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"check the path, or say it as NAME:PATH \(names: rig, nuscenes, ") as caught:
        open_dataset(tmp_path)
    assert len(str(caught.value)) < 250 + len(str(tmp_path))
    with pytest.raises(DataError, match="nowhere is no folder"):
        open_dataset(tmp_path / "nowhere")
