"""Cameras: pixels and rays against OpenCV, against formulas worked out by hand, and against each other."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clever3d.datasets import Camera, Distortion
from clever3d.datasets.geometry import rigid
from clever3d.errors import InputError

WIDE = np.array([[480.0, 0, 640], [0, 484, 360], [0, 0, 1]])
LONG = np.array([[1200.0, 0, 640], [0, 1210, 360], [0, 0, 1]])

# Computed once by OpenCV 5.0.0: cv2.projectPoints(points, 0, 0, LONG, coefficients) and
# cv2.fisheye.projectPoints(points, 0, 0, WIDE, coefficients).
POINTS = np.array([[0.3, -0.2, 2.0], [-1.2, 0.8, 3.0], [2.0, 1.0, 4.0], [-0.9, -0.6, 1.5]])
OPENCV: dict[tuple[float, ...], list[list[float]]] = {
    (-0.3, 0.08, 0.0015, -0.0022): [
        [818.00161, 240.344673],
        [189.39003259259272, 662.9193551275721],
        [1186.7425, 636.63246875],
        [14.33536, -58.719048],
    ],
    (-0.3, 0.12, 0.0015, -0.0022, -0.02): [
        [818.00909141875, 240.33964382406248],
        [188.48301974650218, 663.529069318555],
        [1188.7200390625, 637.6294780273438],
        [8.5725952, -62.59290656],
    ],
    (0.21, -0.12, 0.0011, -0.0007, 0.03, 0.35, -0.09, 0.012): [
        [819.0799054090405, 239.64341386392272],
        [174.30164829753892, 673.2298890148027],
        [1214.5072405477326, 650.1956816928151],
        [-31.730467560341594, -90.56640097111841],
    ],
}
FISHEYE = (0.08, -0.03, 0.011, -0.0021)
FISHEYE_POINTS = np.array([[0.3, -0.2, 2.0], [-1.2, 0.8, 3.0], [4.0, 1.0, 1.0], [-3.0, 2.5, 0.4], [0.0, 0.0, 1.0]])
FISHEYE_PIXELS = [
    [711.4140230060129, 311.9939067570691],
    [458.35341833219246, 482.10686878780393],
    [1315.4099587130167, 530.2595937589064],
    [45.38309618111941, 859.6433705700315],
    [640.0, 360.0],
]


def camera(
    lens: Distortion | None = None, intrinsics: np.ndarray = LONG, to_camera: np.ndarray | None = None
) -> Camera:
    return Camera("front", Path("nowhere.png"), intrinsics, np.eye(4) if to_camera is None else to_camera, lens)


@pytest.mark.parametrize("coefficients", OPENCV, ids=len)
def test_pinhole_distortion_equals_opencvs(coefficients: tuple[float, ...]) -> None:
    pixels, depth = camera(Distortion("pinhole", coefficients)).project(POINTS)
    np.testing.assert_allclose(pixels, OPENCV[coefficients], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(depth, POINTS[:, 2])


def test_fisheye_distortion_equals_opencvs() -> None:
    pixels, _ = camera(Distortion("fisheye", FISHEYE), WIDE).project(FISHEYE_POINTS)
    np.testing.assert_allclose(pixels, FISHEYE_PIXELS, rtol=0, atol=1e-9)


def test_distortion_equals_the_formula_worked_out_by_hand() -> None:
    # x = 0.5, y = 0, r2 = 0.25: radial 1 + 0.2*0.25 + 0.4*0.0625 = 1.075; tangential x: p2 (r2 + 2 x2) = 0.02*0.75,
    # y: p1 (r2 + 2 y2) = 0.01*0.25.
    moved = Distortion("pinhole", (0.2, 0.4, 0.01, 0.02)).distort(np.array([[0.5, 0.0]]))
    np.testing.assert_allclose(moved, [[0.5375 + 0.015, 0.0025]], atol=1e-15)
    # 45 degrees off the axis: theta = pi/4, theta_d = theta (1 + 0.1 theta2), along x.
    theta = np.pi / 4
    moved = Distortion("fisheye", (0.1, 0.0, 0.0, 0.0)).distort(np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(moved, [[theta * (1 + 0.1 * theta**2), 0]], atol=1e-15)


def test_the_pose_moves_points_before_they_are_projected() -> None:
    # FLU to camera axes, the camera 1.5 m ahead of the LiDAR and 0.2 m below: (10, 2, 1) is (-2, -1.2, 8.5).
    to_camera = rigid([[0, -1, 0], [0, 0, -1], [1, 0, 0]], [0, -0.2, -1.5])
    pixels, depth = camera(to_camera=to_camera).project(np.array([[10.0, 2, 1]], dtype=np.float32))
    np.testing.assert_allclose(depth, [8.5], atol=1e-12)
    np.testing.assert_allclose(pixels, [[640 - 1200 * 2 / 8.5, 360 - 1210 * 1.2 / 8.5]], atol=1e-9)


def test_a_skewed_sensor_is_projected_with_its_skew() -> None:
    skewed = np.array([[100.0, 5, 50], [0, 100, 20], [0, 0, 1]])
    pixels, _ = camera(intrinsics=skewed).project(np.array([[1.0, 2, 10]]))
    np.testing.assert_allclose(pixels, [[50 + 10 + 1, 20 + 20]], atol=1e-12)
    np.testing.assert_allclose(camera(intrinsics=skewed).rays(pixels) * 105**0.5, [[1, 2, 10]], atol=1e-12)


def test_points_behind_or_beside_the_camera_have_no_pixel() -> None:
    pixels, depth = camera().project(np.array([[0.0, 0, -2], [1, 0, 0], [0, 0, 2]]))
    np.testing.assert_array_equal(depth, [-2, 0, 2])
    np.testing.assert_array_equal(np.isnan(pixels).any(axis=1), [True, True, False])


def test_no_points_and_no_pixels_are_no_error() -> None:
    lens = Distortion("fisheye", FISHEYE)
    pixels, depth = camera(lens).project(np.zeros((0, 3), dtype=np.float32))
    assert pixels.shape == (0, 2)
    assert depth.shape == (0,)
    assert camera(lens).rays(np.zeros((0, 2))).shape == (0, 3)


@pytest.mark.parametrize("shape", [(5, 4), (3,), (2, 3, 3)])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        camera().project(np.zeros(shape, dtype=np.float32))


# ---------------------------------------------------------------- the turning point


def test_the_limit_is_where_the_radial_function_turns() -> None:
    # d/dr r (1 + k1 r2) = 0 at r = 1 / sqrt(-3 k1): 1.054 for k1 = -0.3.
    assert Distortion("pinhole", (-0.3, 0, 0, 0)).limit == pytest.approx(1 / 0.9**0.5, abs=1e-12)
    # r (1 + k1 r2 + k2 r4): 1 + 3 k1 s + 5 k2 s2 = 0 for s = 2 and s = 5 with k1 = -7/30 and k2 = 1/50.
    assert Distortion("pinhole", (-7 / 30, 1 / 50, 0, 0)).limit == pytest.approx(2**0.5, abs=1e-9)
    # A denominator alone, r / (1 + k4 s): turns at s = 1 / k4.
    assert Distortion("pinhole", (0, 0, 0, 0, 0, 0.25, 0, 0)).limit == pytest.approx(2, abs=1e-9)
    assert Distortion("pinhole", (0.1, 0, 0, 0)).limit == np.inf
    assert Distortion("fisheye", (0.1, 0, 0, 0)).limit == np.pi / 2
    assert Distortion("fisheye", (-1 / 3, 0, 0, 0)).limit == pytest.approx(1, abs=1e-12)


def test_a_denominator_that_vanishes_ends_the_model_there() -> None:
    # 1 - 0.25 s is zero at r = 2, where the radial function has grown without bound.
    assert Distortion("pinhole", (0, 0, 0, 0, 0, -0.25, 0, 0)).limit == pytest.approx(2, abs=1e-9)


def test_points_beyond_the_turning_point_do_not_come_back_into_the_image() -> None:
    lens = Distortion("pinhole", (-0.3, 0.0, 0.0, 0.0))
    far = 1.8  # the polynomial alone gives 1.8 (1 - 0.3 * 3.24) = 0.05: in the middle of the image
    assert abs(far * (1 - 0.3 * far**2)) < 0.06
    pixels, depth = camera(lens).project(np.array([[far, 0, 1.0], [0.3, 0, 1.0]]))
    np.testing.assert_array_equal(np.isnan(pixels[:, 0]), [True, False])
    np.testing.assert_array_equal(depth, [1, 1])


def test_a_fisheye_turns_too() -> None:
    lens = Distortion("fisheye", (-0.5, 0.0, 0.0, 0.0))  # turns at theta = sqrt(2/3) = 0.816, 46.8 degrees
    pixels, _ = camera(lens, WIDE).project(np.array([[np.tan(0.8), 0, 1], [np.tan(0.83), 0, 1]]))
    np.testing.assert_array_equal(np.isnan(pixels[:, 0]), [False, True])


# ---------------------------------------------------------------- the way back

LENSES = [None, *(Distortion("pinhole", c) for c in OPENCV), Distortion("fisheye", FISHEYE)]


@pytest.mark.parametrize("lens", LENSES, ids=["none", "pinhole4", "pinhole5", "pinhole8", "fisheye"])
def test_rays_lead_back_through_every_pixel(lens: Distortion | None) -> None:
    u, v = np.meshgrid(np.linspace(-0.5, 1279.5, 29), np.linspace(-0.5, 719.5, 17))
    pixels = np.column_stack([u.ravel(), v.ravel()])
    rays = camera(lens).rays(pixels)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1, atol=1e-12)
    assert (rays[:, 2] > 0).all()
    back, depth = camera(lens).project(rays * 7)
    np.testing.assert_allclose(back, pixels, atol=1e-4)
    np.testing.assert_allclose(depth, 7 * rays[:, 2], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    k1=st.floats(-0.4, 0.4),
    k2=st.floats(-0.1, 0.1),
    p=st.floats(-0.003, 0.003),
    x=st.floats(-1.2, 1.2),
    y=st.floats(-1.2, 1.2),
)
def test_undistort_is_the_inverse_of_distort_inside_the_limit(
    k1: float, k2: float, p: float, x: float, y: float
) -> None:
    lens = Distortion("pinhole", (k1, k2, p, -p))
    point = np.array([[x, y]])
    if np.hypot(x, y) > 0.9 * lens.limit:
        return
    np.testing.assert_allclose(lens.undistort(lens.distort(point)), point, atol=1e-6)


def test_pixels_that_no_ray_reaches_are_not_a_number() -> None:
    lens = Distortion("pinhole", (-0.3, 0.0, 0.0, 0.0))
    largest = lens.limit * (1 - 0.3 * lens.limit**2)  # the radial function at its turning point: 0.70
    pixels = np.array([[640 + 1200 * 0.98 * largest, 360], [640 + 1200 * 1.05 * largest, 360]])
    inside, outside = camera(lens).rays(pixels)
    assert np.isfinite(inside).all()
    assert np.isnan(outside).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("model", "coefficients", "message"),
    [
        ("brown", (0.1, 0, 0, 0), "lens model 'brown': choose one of pinhole, fisheye"),
        ("pinhole", (0.1, 0.2), "pinhole distortion takes 4 or 5 or 8"),
        ("fisheye", (0.1, 0, 0, 0, 0), "fisheye distortion takes 4"),
        ("pinhole", (0.1, 0, float("nan"), 0), "finite"),
    ],
)
def test_a_lens_that_cannot_be_is_an_input_error(model: str, coefficients: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Distortion(model, coefficients)  # type: ignore[arg-type]


def test_a_camera_survives_pickling() -> None:
    lens = Distortion("pinhole", (-0.3, 0.08, 0.0015, -0.0022))
    again = pickle.loads(pickle.dumps(camera(lens)))
    np.testing.assert_array_equal(again.project(POINTS)[0], camera(lens).project(POINTS)[0])
    assert again.distortion == lens
