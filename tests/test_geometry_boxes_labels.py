"""Rotations, boxes and label tables: closed forms, and what is said of matrices and ids that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clever3d.datasets import IGNORE, Boxes, LabelSpec, PointLabels
from clever3d.datasets.geometry import (
    apply,
    check_rotation,
    check_transform,
    inverse,
    quaternion_to_rotation,
    rigid,
    rotation_about_z,
    rotation_to_quaternion,
)
from clever3d.errors import DataError, InputError

HALF = 0.5**0.5
QUARTER = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # about z: x to y

quaternions = (
    st.lists(st.floats(-1, 1), min_size=4, max_size=4)
    .filter(lambda q: float(np.linalg.norm(q)) > 0.1)
    .map(lambda q: (np.array(q) / np.linalg.norm(q)).tolist())
)

# ---------------------------------------------------------------- quaternions


@pytest.mark.parametrize(
    ("quaternion", "rotation"),
    [
        ((1, 0, 0, 0), np.eye(3)),
        ((HALF, 0, 0, HALF), QUARTER),
        ((HALF, HALF, 0, 0), [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
        ((0.5, -0.5, 0.5, -0.5), [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),  # from camera axes to FLU
        ((0, 0, 0, 1.004), np.diag([-1, -1, 1])),  # three digits
    ],
)
def test_quaternions_are_w_x_y_z_and_rounding_is_mended(quaternion: tuple[float, ...], rotation: object) -> None:
    np.testing.assert_allclose(quaternion_to_rotation(quaternion, "here"), rotation, atol=1e-15)


@settings(max_examples=80, deadline=None)
@given(quaternions)
def test_a_quaternion_turns_a_vector_as_hamiltons_product_does(q: list[float]) -> None:
    w, *xyz = np.array(q) / np.linalg.norm(q)
    v = np.array([0.3, -1.2, 2.0])
    axis = np.array(xyz)
    turned = v + 2 * w * np.cross(axis, v) + 2 * np.cross(axis, np.cross(axis, v))  # q v q*
    np.testing.assert_allclose(quaternion_to_rotation(q, "here") @ v, turned, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(quaternions)
def test_the_quaternion_of_a_rotation_gives_it_back(q: list[float]) -> None:
    rotation = quaternion_to_rotation(q, "here")
    again = rotation_to_quaternion(rotation)
    assert again[0] >= 0
    np.testing.assert_allclose(np.linalg.norm(again), 1, atol=1e-12)
    np.testing.assert_allclose(quaternion_to_rotation(again, "here"), rotation, atol=1e-9)


@pytest.mark.parametrize(
    "quaternion",
    [(0, 0, 0, 0), (0.5, -0.5, 0.5, -0.05), (0, 0, 0, 2), (1, 0, 0), (1, 0, 0, float("nan")), ("a", 0, 0, 1), None],
)
def test_what_is_no_quaternion_is_named_with_its_place(quaternion: object) -> None:
    with pytest.raises(DataError, match=r"poses\.json: rotation"):
        quaternion_to_rotation(quaternion, "poses.json: rotation")  # type: ignore[arg-type]


# ---------------------------------------------------------------- rigid transforms


def test_a_transform_turns_first_and_moves_then() -> None:
    np.testing.assert_allclose(apply(rigid(QUARTER, [10, 0, 1]), np.array([[1.0, 2, 3]])), [[8, 1, 4]], atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(quaternions, st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_the_inverse_undoes_a_transform(q: list[float], t: list[float]) -> None:
    transform = rigid(quaternion_to_rotation(q, "here"), t)
    np.testing.assert_allclose(inverse(transform) @ transform, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(inverse(transform), np.linalg.inv(transform), atol=1e-10)


def test_points_in_float32_are_moved_in_float64() -> None:
    far = rigid(np.eye(3), [4_000_000.0, 0, 0])  # a map's coordinates: float32 steps by 0.25 m there
    moved = apply(far, np.array([[0.125, 0, 0]], dtype=np.float32))
    assert moved.dtype == np.float64
    assert moved[0, 0] == 4_000_000.125


# ---------------------------------------------------------------- rotations that are none


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([1.0, -1, 1]), "determinant -1; .* mirror image: two axes are swapped, or one has the wrong sign"),
        (QUARTER[[1, 0, 2]], "mirror image"),
        (1000 * QUARTER, r"determinant 1e\+09; .* rotation times 1000: take the scale out"),
        (0.5 * QUARTER, "rotation times 0.5"),
        ([[1, 0, 0.1], [0, 1, 0], [0, 0, 1]], r"not orthogonal \(R R\^T differs from the identity by 0.1"),
        (np.zeros((3, 3)), "no rotation"),
        (np.eye(4), r"expected 3 x 3 finite numbers, got shape \(4, 4\)"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, float("inf")]], "expected 3 x 3 finite numbers"),
        ([[1, 0, 0], [0, 1, 0], [0, 0]], "is not 3 x 3 numbers"),
        ("east", "is not 3 x 3 numbers"),
    ],
)
def test_a_matrix_that_is_no_rotation_is_told_why(matrix: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"calib\.txt: R0_rect: .*{message}"):
        check_rotation(matrix, "calib.txt: R0_rect")  # type: ignore[arg-type]


def test_a_rotation_written_with_six_digits_is_one() -> None:
    rounded = np.round(quaternion_to_rotation((0.303, -0.202, 0.707, 0.606), "here"), 6)
    np.testing.assert_array_equal(check_rotation(rounded.tolist(), "here"), rounded)
    with pytest.raises(DataError, match="not orthogonal"):
        check_rotation(np.round(rounded, 2), "here")


def test_more_classes_than_a_byte_holds_are_refused() -> None:
    names = {raw: f"class {raw}" for raw in range(256)}
    with pytest.raises(InputError, match=r"256 classes.* at most 255"):
        LabelSpec("mine", names, tuple(names.values()), {raw: raw for raw in names}, ((0, 0, 0),) * 256)


def test_a_transform_with_another_last_row_is_told_why() -> None:
    transform = rigid(QUARTER, [1, 2, 3])
    np.testing.assert_array_equal(check_transform(transform.tolist(), "here"), transform)
    with pytest.raises(DataError, match=r"rig\.yaml: extrinsic: .*\[1.0, 2.0, 3.0, 1.0\].*transposed"):
        check_transform(transform.T, "rig.yaml: extrinsic")
    odd = transform.copy()
    odd[3, 3] = 2
    with pytest.raises(DataError, match=r"last row is \[0.0, 0.0, 0.0, 2.0\], not 0 0 0 1$"):
        check_transform(odd, "here")
    with pytest.raises(DataError, match="mirror image"):
        check_transform(np.diag([1.0, 1, -1, 1]), "here")


# ---------------------------------------------------------------- boxes


def boxes(yaw: float = 0.0, **more: object) -> Boxes:
    """A car of 4 x 2 x 1.5 m at (10, 5, 0.75), and one unturned of 1 m at the origin."""
    return Boxes(
        centers=np.array([[10, 5, 0.75], [0, 0, 0]]),
        sizes=np.array([[4, 2, 1.5], [1, 1, 1]]),
        rotations=np.stack([rotation_about_z(yaw), np.eye(3)]),
        names=("car", "box"),
        **more,  # type: ignore[arg-type]
    )


def test_a_box_holds_the_points_between_its_faces_and_on_them() -> None:
    xyz = np.array([[11.9, 5.9, 0.1], [12, 6, 1.5], [12.01, 5, 0.75], [10, 6.01, 0.75], [10, 5, -0.01], [0.4, -0.4, 0]])
    np.testing.assert_array_equal(
        boxes().contains(xyz), [[True, True, False, False, False, False], [False, False, False, False, False, True]]
    )


def test_a_turned_box_holds_what_is_along_its_heading() -> None:
    turned = boxes(np.pi / 2)  # now 4 m along y
    np.testing.assert_array_equal(
        turned.contains(np.array([[10, 6.9, 0.75], [11.9, 5, 0.75]], dtype=np.float32))[0], [True, False]
    )
    np.testing.assert_allclose(turned.yaws, [np.pi / 2, 0], atol=1e-12)


def test_a_tilted_box_holds_other_points_than_an_upright_one_of_the_same_yaw() -> None:
    angle = np.radians(30)  # nose up: about y by -30 degrees
    tilt = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    tilted = Boxes(np.zeros((1, 3)), np.array([[4.0, 2, 1]]), tilt[None], ("car",))
    np.testing.assert_allclose(tilted.yaws, [0], atol=1e-12)
    nose = np.array([[1.9 * np.cos(angle), 0, 1.9 * np.sin(angle)]])
    assert tilted.contains(nose).all()
    assert not Boxes(np.zeros((1, 3)), np.array([[4.0, 2, 1]]), np.eye(3)[None], ("car",)).contains(nose).any()


def test_contains_agrees_with_a_plain_test_of_every_point() -> None:
    generator = np.random.default_rng(0)
    rotation = quaternion_to_rotation((0.9, 0.1, -0.2, 0.4), "here")
    box = Boxes(np.array([[1.0, 2, 3]]), np.array([[6.0, 3, 2]]), rotation[None], ("x",))
    xyz = generator.uniform(-5, 9, (5000, 3)).astype(np.float32)
    local = np.einsum("ij,nj->ni", np.linalg.inv(rotation), xyz.astype(np.float64) - [1, 2, 3])
    plain = (np.abs(local) <= [3, 1.5, 1]).all(axis=1)
    assert plain.sum() > 50
    np.testing.assert_array_equal(box.contains(xyz)[0], plain)


def test_corners_go_round_from_front_left_the_bottom_first() -> None:
    np.testing.assert_allclose(
        boxes().corners()[0],
        [[12, 6, 0], [8, 6, 0], [8, 4, 0], [12, 4, 0], [12, 6, 1.5], [8, 6, 1.5], [8, 4, 1.5], [12, 4, 1.5]],
    )
    np.testing.assert_allclose(boxes(np.pi / 2).corners()[0][0], [9, 7, 0], atol=1e-12)  # front left of one going +y


@pytest.mark.parametrize("yaw", [0.0, 1.0, -2.5, np.pi])
def test_the_yaw_of_an_upright_box_is_its_angle(yaw: float) -> None:
    assert boxes(yaw).yaws[0] == pytest.approx(yaw, abs=1e-12)


def test_select_keeps_all_that_belongs_to_a_box() -> None:
    full = boxes(velocities=np.array([[1.0, 0, 0], [0, 2, 0]]), track_ids=("a", "b"), num_points=np.array([5, 7]))
    for rows in (np.array([False, True]), np.array([1])):
        chosen = full.select(rows)
        assert (len(chosen), chosen.names, chosen.track_ids) == (1, ("box",), ("b",))
        np.testing.assert_array_equal(chosen.centers, [[0, 0, 0]])
        np.testing.assert_array_equal(chosen.velocities, [[0, 2, 0]])  # type: ignore[arg-type]
        np.testing.assert_array_equal(chosen.num_points, [7])  # type: ignore[arg-type]
    assert boxes().select(np.array([0])).velocities is None


def test_no_boxes_are_boxes_too() -> None:
    none = Boxes.empty()
    assert len(none) == 0
    assert none.contains(np.zeros((4, 3))).shape == (0, 4)
    assert none.corners().shape == (0, 8, 3)
    assert none.yaws.shape == (0,)
    assert len(none.select(np.zeros(0, dtype=bool))) == 0


@pytest.mark.parametrize("field", ["centers", "sizes", "rotations", "velocities"])
def test_boxes_of_unequal_number_are_refused(field: str) -> None:
    parts: dict[str, object] = {
        "centers": np.zeros((2, 3)),
        "sizes": np.ones((2, 3)),
        "rotations": np.stack([np.eye(3)] * 2),
        "velocities": np.zeros((2, 3)),
    }
    parts[field] = np.zeros((1, 3))
    with pytest.raises(InputError, match=rf"{field} has shape \(1, 3\)"):
        Boxes(names=("a", "b"), **parts)  # type: ignore[arg-type]


# ---------------------------------------------------------------- labels

SPEC = LabelSpec(
    name="small",
    raw_names={0: "none", 10: "car", 252: "moving car", 40: "road"},
    classes=("car", "road"),
    to_class={10: 0, 252: 0, 40: 1},
    colors=((0, 0, 255), (255, 0, 255)),
)


def test_ids_become_the_classes_of_the_benchmark() -> None:
    classes = SPEC.train_ids(np.array([10, 0, 252, 40], dtype=np.uint32))
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, [0, IGNORE, 0, 1])
    assert SPEC.train_ids(np.zeros(0, dtype=np.int32)).shape == (0,)


@pytest.mark.parametrize("raw", [11, 253, 70_000, -1])
def test_an_id_that_the_data_set_does_not_have_is_named(raw: int) -> None:
    labels = PointLabels(np.array([10, raw, 40], dtype=np.int32), SPEC, path="08/000000.label")
    with pytest.raises(DataError, match=rf"08/000000\.label: small has no label {raw};"):
        _ = labels.train_ids


def test_of_many_unknown_ids_five_are_named() -> None:
    with pytest.raises(DataError, match=r"no label 1, 2, 3, 4, 5 \.\.\.;"):
        SPEC.train_ids(np.arange(1, 9))


@pytest.mark.parametrize("change", [{"colors": ((0, 0, 0),)}, {"to_class": {10: 0, 11: 1}}])
def test_a_table_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    parts = {"name": "x", "raw_names": {10: "car"}, "classes": ("car", "road"), "to_class": {10: 0}}
    with pytest.raises(InputError, match="label spec x"):
        LabelSpec(**{**parts, "colors": ((0, 0, 0), (1, 1, 1)), **change})  # type: ignore[arg-type]
