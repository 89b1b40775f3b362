"""Mistakes in rig.yaml and in the rig's files: each error names the file, the line, the field, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from test_rig import config, make

from clever3d.datasets import Rig
from clever3d.datasets.rig_config import load_config
from clever3d.datasets.rig_template import look_around, template, write_template
from clever3d.errors import DataError

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def _camera(key: str, value: Any) -> Change:
    return lambda rig, camera: camera.__setitem__(key, value)


def _lidar(key: str, value: Any) -> Change:
    return lambda rig, camera: rig["lidar"].__setitem__(key, value)


def _both(rig: dict[str, Any], camera: dict[str, Any]) -> None:
    camera["camera_to_lidar"] = camera["lidar_to_camera"]


BAD: dict[str, tuple[Change, str]] = {
    "unknown key": (_camera("intrinsic", 1), r"cameras\.front\.intrinsic: there is no such key; did you mean 'intrin"),
    "unknown key at the top": (lambda rig, c: rig.update(camera=1), r"camera: there is no such key; .*'cameras'"),
    "mirrored": (
        _camera("lidar_to_camera", {"rotation": [[0, 1, 0], [0, 0, -1], [1, 0, 0]], "translation": [0, 0, 0]}),
        r"cameras\.front\.lidar_to_camera\.rotation: determinant -1; .*mirror",
    ),
    "scaled": (
        _camera("lidar_to_camera", {"rotation": [[0, -2, 0], [0, 0, -2], [2, 0, 0]], "translation": [0, 0, 0]}),
        r"rotation: determinant 8; .*times 2",
    ),
    "skewed": (
        _camera("lidar_to_camera", {"rotation": [[0.1, -1, 0], [0, 0, -1], [1, 0, 0]], "translation": [0, 0, 0]}),
        r"rotation: .*not orthogonal",
    ),
    "no extrinsics": (
        lambda rig, c: c.pop("lidar_to_camera"),
        r"cameras\.front: lidar_to_camera, .* missing; give one",
    ),
    "both extrinsics": (_both, r"cameras\.front: .*both are given; keep the one"),
    "rotation without translation": (
        _camera("lidar_to_camera", {"rotation": [[0, -1, 0], [0, 0, -1], [1, 0, 0]]}),
        r"lidar_to_camera: give matrix, or rotation and translation, .* it has rotation",
    ),
    "text for a number": (
        _camera("lidar_to_camera", {"quaternion": [1, 0, 0, "zero"], "translation": [0, 0, 0]}),
        r"quaternion: 'zero' is no finite number",
    ),
    "matrix of three rows": (
        _camera("lidar_to_camera", {"matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}),
        r"lidar_to_camera\.matrix: expected 4 x 4 numbers",
    ),
    "negative focal length": (
        _camera("intrinsics", {"fx": -1, "fy": 5, "cx": 1, "cy": 1}),
        r"cameras\.front\.intrinsics: .*fx and fy are above 0",
    ),
    "intrinsics without cy": (_camera("intrinsics", {"fx": 1, "fy": 5, "cx": 1}), r"intrinsics\.cy is missing"),
    "image size": (_camera("image_size", [64]), r"image_size: expected \[width, height\]"),
    "lens model": (
        _camera("distortion", {"model": "fishey", "coefficients": [0, 0, 0, 0]}),
        r"distortion\.model: 'fishey' is none of pinhole, fisheye; did you mean 'fisheye'",
    ),
    "lens coefficients": (
        _camera("distortion", {"model": "pinhole", "coefficients": [0, 0, 0]}),
        r"distortion\.coefficients: pinhole distortion takes 4 or 5 or 8",
    ),
    "axes": (_lidar("axes", "fuu"), r"lidar\.axes: frame 'fuu' is not three letters"),
    "left-handed axes": (_lidar("axes", "fru"), r"lidar\.axes: fru is left-handed.*extrinsics_axes: flu"),
    "unit": (_lidar("unit", "meter"), r"lidar\.unit: 'meter' is none of m, cm, mm"),
    "no scans": (_lidar("files", "scans/*.npy"), r"lidar\.files: .*scans.* finds no \.bin / \.npy / \.pcd file"),
    "no images": (_camera("files", "nowhere/*.png"), r"cameras\.front\.files: .*nowhere.* finds no .*\.png"),
    "time without timestamps": (
        lambda rig, c: rig.update(matching={"by": "time"}),
        r"matching: by: time needs lidar\.timestamps",
    ),
    "poses without timestamps": (lambda rig, c: rig.update(poses={"file": "p.txt"}), r"poses: .*timestamps: names"),
    "offset that does nothing": (_camera("time_offset", 0.1), r"front\.time_offset needs front\.timestamps"),
    "labels without names": (lambda rig, c: rig.update(labels={"files": "x"}), r"labels\.names is missing"),
    "future version": (lambda rig, c: rig.update(version=2), r"version: this clever3d knows version 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named_with_file_line_and_field(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    settings = config()
    make(tmp_path, settings)
    change(settings, settings["cameras"]["front"])
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(DataError, match=message) as caught:
        Rig(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'rig.yaml'}, line ")


def _text(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rig.yaml"
    path.write_text(text)
    return path


def test_a_double_key_is_named_with_both_lines(tmp_path: Path) -> None:
    path = _text(tmp_path, "lidar:\n  files: a\n  axes: flu\n  files: b\n")
    with pytest.raises(
        DataError, match=r"rig\.yaml, line 4: lidar\.files stands here a second time \(first in line 2\)"
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lidar: {files: a\n", r"rig\.yaml, line 2: this is no YAML"),
        ("- a\n- b\n", "line 1: expected `key: value` lines"),
        ("", "is empty; `clever3d rig new"),
        (
            "lidar: {files: a}\nversion: \0 1\n",
            r"rig\.yaml, line 2: the character U\+0000 may not stand in YAML; remove it",
        ),
        ("", r"rig\.yaml is empty; `clever3d rig new FOLDER` writes a template$"),
        ("lidar: &a {files: *a}\n", "nested|value|alias|no YAML"),
        ("lidar: !!python/object/apply:os.system ['true']\n", "no YAML|expected"),
        ("cameras: {}\n", "lidar is missing; write for example"),
        (
            "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 7)),
            r"line \d+: a\d comes to more than 10,000 values; write fewer aliases",
        ),
    ],
)
def test_text_that_is_no_rig_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_config(_text(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rig\.yaml cannot be read"):
        Rig(tmp_path)


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text."""
    settings = config()
    folder = make(tmp_path, settings)
    text = (folder / "rig.yaml").read_text().replace("fx: 50", "fx: 5e1")
    (folder / "rig.yaml").write_text(text)
    assert Rig(folder)[0].cameras[0].intrinsics[0, 0] == 50


def test_two_scans_with_one_name_are_an_error(tmp_path: Path) -> None:
    settings = config()
    settings["lidar"]["files"] = "lidar"
    folder = make(tmp_path, settings)
    np.zeros((3, 4), dtype="<f4").tofile(folder / "lidar" / "000001.bin")
    with pytest.raises(DataError, match=r"000001\.npy and .*000001\.bin both are the frame '000001'"):
        Rig(folder)


def test_two_scans_with_one_number_are_an_error(tmp_path: Path) -> None:
    folder = make(tmp_path, config(matching={"by": "number"}), ("01", "1"), ("01",))
    with pytest.raises(DataError, match="both have the number 1"):
        Rig(folder)


def test_a_scan_without_its_image_is_an_error_unless_skipped(tmp_path: Path) -> None:
    folder = make(tmp_path, config(), ("1", "2"), ("1",))
    with pytest.raises(
        DataError, match=r"cameras\.front: no image .* has the name of .*2\.npy \(1 of 2 .*missing_images: skip"
    ):
        Rig(folder)
    make(tmp_path, config(matching={"missing_images": "skip"}), ("1", "2"), ("1",))
    assert [len(frame.cameras) for frame in Rig(folder)] == [1, 0]


def test_a_camera_that_matches_nothing_is_an_error_even_if_skipped(tmp_path: Path) -> None:
    folder = make(tmp_path, config(matching={"missing_images": "skip"}), ("1", "2"), ("8", "9"))
    with pytest.raises(DataError, match=r"cameras\.front: no image .* \(2 of 2 scans lack one\)"):
        Rig(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0 0 0 0 0\n", r"poses\.txt, line 1: expected `time x y z qx qy qz qw`"),
        ("1 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n", r"poses\.txt, line 2: the time 1 is not after"),
        ("1 0 0 0 0 0 0 0\n2 0 0 0 0 0 0 1\n", r"poses\.txt, line 1: the quaternion .* is zero"),
        ("1 0 0 0 0 0 0 1\n", "holds 1 poses; at least two"),
    ],
)
def test_poses_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    settings = config(poses={"file": "poses.txt"})
    settings["lidar"]["timestamps"] = "names"
    folder = make(tmp_path, settings)
    (folder / "poses.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        Rig(folder)


def test_a_scan_outside_the_poses_is_an_error(tmp_path: Path) -> None:
    settings = config(poses={"file": "poses.txt"})
    settings["lidar"]["timestamps"] = "names"
    folder = make(tmp_path, settings, ("50",))
    (folder / "poses.txt").write_text("1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n")
    with pytest.raises(DataError, match=r"no pose within 1 s of the time 50\.0.*from 1\.0.* to 2\.0.*time_unit"):
        Rig(folder)[0]


def test_timestamps_that_do_not_fit(tmp_path: Path) -> None:
    settings = config()
    settings["lidar"]["timestamps"] = "times.txt"
    folder = make(tmp_path, settings, ("1", "2"))
    for text, message in (
        ("1.0\n", "has 1 times for 2 files"),
        ("1 1.0\n", "has no line `2 TIME`"),
        ("1 then\n", "line 1: expected `NAME TIME`"),
    ):
        (folder / "times.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            Rig(folder)


def test_the_file_in_the_documentation_is_a_right_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "rig.md").read_text()
    text = page.split("```yaml\n")[1].split("```")[0]
    found = load_config(_text(tmp_path, text))
    assert found.cameras[0].image_size == (1920, 1200) and found.matching.by == "stem"


# --------------------------------------------------------------------------------------------------- template


def _filled(text: str) -> str:
    """The template with a value for every placeholder, as a user would."""
    values = {
        "axes": "flu",
        "rotation": "[[0, -1, 0], [0, 0, -1], [1, 0, 0]]",
        "translation": "[0, 0, 0]",
        "names": "{1: road}",
        "intrinsics": "{fx: 50, fy: 50, cx: 31.5, cy: 23.5}",
    }
    lines = []
    for line in text.splitlines():
        key = line.strip().split(":")[0]
        if "FILL_IN" in line and not line.lstrip().startswith("#"):
            line = f"{line[: len(line) - len(line.lstrip())]}{key}: {values[key]}"
        lines.append(line)
    return "\n".join(lines)


def test_the_template_loads_once_it_is_filled_in(tmp_path: Path) -> None:
    folder = make(tmp_path, config(), ("1", "2"))
    (folder / "rig.yaml").unlink()
    (folder / "labels").mkdir()
    for stem in "12":
        np.save(folder / "labels" / f"{stem}.npy", np.array([1, 1]))
    path, _ = write_template(folder)
    with pytest.raises(DataError, match=r"fill in lidar\.axes \(line \d+\), cameras\.front\.intrinsics\.fx \(line"):
        Rig(folder)
    path.write_text(_filled(path.read_text()))
    rig = Rig(folder)
    assert len(rig) == 2 and rig[0].cameras[0].image_size == (64, 48)
    assert rig.label_spec is not None and rig.label_spec.classes == ("road",)


def test_every_key_that_is_commented_out_in_the_template_is_known(tmp_path: Path) -> None:
    """The optional lines, uncommented, are accepted as they stand."""
    folder = make(tmp_path, config(), ("1",))
    text = _filled(template(look_around(folder)))
    optional = (
        "scenes", "columns", "intensity_scale", "unit", "min_range", "ground_height", "timestamps", "time_unit",
        "extrinsics_axes", "distortion", "time_offset", "max_time_difference", "missing_images", "poses", "  file",
        "  lidar_to_body", "labels", "  files", "  names", "  ignore",
    )  # fmt: skip
    prefixes = tuple(f"# {key}:" for key in optional)
    lines = [line.replace("# ", "", 1) if line.lstrip().startswith(prefixes) else line for line in text.splitlines()]
    assert all(any(line.lstrip(" ").startswith(key.strip() + ":") for line in lines) for key in optional)
    found = load_config(_text(tmp_path, "\n".join(lines)))
    assert found.lidar.columns == 4 and found.lidar.times is not None
    assert found.cameras[0].distortion is not None and found.cameras[0].times is not None
    assert found.poses is not None and found.labels is not None and found.scenes is not None


def test_an_empty_folder_gets_a_template_with_a_camera(tmp_path: Path) -> None:
    path, contents = write_template(tmp_path / "new")
    assert contents.scans is None and "FILL_IN/*.bin" in path.read_text()
    with pytest.raises(DataError, match=r"fill in lidar\.files .*lidar\.axes"):
        load_config(path)


def test_a_template_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text("mine")
    with pytest.raises(DataError, match=r"rig\.yaml exists; .*--force"):
        write_template(tmp_path)
    assert (tmp_path / "rig.yaml").read_text() == "mine"
    write_template(tmp_path, replace=True)
    assert "lidar:" in (tmp_path / "rig.yaml").read_text()


def test_the_template_sees_scans_and_cameras(tmp_path: Path) -> None:
    for name, size in (("cam/left", (32, 24)), ("cam/right", (40, 30))):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", size).save(tmp_path / name / "7.jpg")
    (tmp_path / "scans").mkdir()
    np.zeros((5, 4), dtype="<f4").tofile(tmp_path / "scans" / "0007.bin")
    text = write_template(tmp_path)[0].read_text()
    assert "files: scans/*.bin" in text
    assert "  cam_left:\n    files: cam/left/*.jpg\n    image_size: [32, 24]" in text
    assert "  cam_right:\n" in text and "image_size: [40, 30]" in text
    assert "by: number" in text  # 7.jpg and 0007.bin have the number in common, not the name


def _recordings(folder: Path, *names: str, images: bool = True) -> None:
    for name in names:
        make(folder / name, config())
        (folder / name / "rig.yaml").unlink()
        if not images:
            for path in (folder / name / "front").iterdir():
                path.unlink()


def test_the_template_sees_recordings(tmp_path: Path) -> None:
    """Not the cameras of one of them."""
    _recordings(tmp_path, "rec_001", "rec_005", "rec_027")
    path, contents = write_template(tmp_path)
    assert contents.scenes == "rec_*" and '\nscenes: "rec_*"\n' in path.read_text()
    assert contents.scans is not None and contents.scans.pattern == "lidar/*.npy"
    assert [(image.name, image.pattern) for image in contents.images] == [("front", "front/*.png")]
    assert len(contents.scans.stems) == 3 * len(list((tmp_path / "rec_001" / "lidar").iterdir()))


def test_recordings_are_named_only_where_the_pattern_finds_no_other_folder(tmp_path: Path) -> None:
    _recordings(tmp_path, "day/rec_1", "day/rec_2")
    assert look_around(tmp_path).scenes == "day/rec_*"
    (tmp_path / "day" / "rec_notes").mkdir()
    assert look_around(tmp_path).scenes is None


def test_two_lidars_are_no_recordings(tmp_path: Path) -> None:
    _recordings(tmp_path, "lidar_top", "lidar_rear", images=False)
    _recordings(tmp_path / "camera", "a")
    assert look_around(tmp_path).scenes is None
