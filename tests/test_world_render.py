"""Pictures of the embedded world: depth and labels against closed forms and against the LiDAR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex")

from clever3d.datasets.camera import Camera, Distortion
from clever3d.datasets.geometry import inverse
from clever3d.datasets.synthetic import world
from clever3d.datasets.synthetic.materials import Material
from clever3d.datasets.synthetic.mesh import box, quads
from clever3d.datasets.synthetic.render import render
from clever3d.datasets.synthetic.scene import Builder, Scene
from clever3d.datasets.synthetic.sensors import CameraModel, _looking, _pinhole
from clever3d.datasets.synthetic.sky import weather
from clever3d.datasets.synthetic.truth import CLASSES, CameraShot, Picture, WorldFrame

ROAD, BUILDING, VEGETATION, TRUNK = (CLASSES.index(name) for name in ("road", "building", "vegetation", "trunk"))


@pytest.fixture(scope="module")
def plain() -> Scene:
    """Flat ground at z = 0, a wall whose near face is x = 12, nothing else."""
    builder = Builder(np.random.default_rng(0), 20.0)
    grey = builder.palette(Material((0.3, 0.3, 0.3), 0.4))
    builder.still += [
        quads([[(-90, -90, 0), (90, -90, 0), (90, 90, 0), (-90, 90, 0)]], grey, ROAD),
        box((1, 3, 8), (12.5, 0, 4), grey, BUILDING).owned(7),
    ]
    return builder.scene(lambda t: np.eye(4), weather(np.random.default_rng(1)))


def pinhole(width: int = 200, height: int = 120) -> CameraModel:
    return CameraModel("front", (width, height), _pinhole(width, height, 80.0), _looking(0.0, 0.0, (0.0, 0.0, 1.5)))


def shown(scene: Scene, camera: CameraModel) -> Picture:
    return render(scene, camera, camera.camera_to_ego, 0.0, np.random.default_rng(0))


def test_depth_of_ground_and_wall_are_the_closed_forms(plain):
    camera = pinhole()
    picture = shown(plain, camera)
    v = np.arange(120)
    slope = (v - camera.intrinsics[1, 2]) / camera.intrinsics[1, 1]
    column = picture.depth[:, 2]  # at the left edge nothing but ground and sky
    below = slope > 1.5 / 80
    np.testing.assert_allclose(column[below], 1.5 / slope[below], rtol=1e-4)
    assert np.isinf(column[slope < 0]).all()
    middle = picture.label[:, 100] == BUILDING
    np.testing.assert_allclose(picture.depth[middle, 100], 12.0, rtol=1e-5)
    assert (picture.instance[picture.label == BUILDING] == 7).all() and (
        picture.instance[picture.label == ROAD] == 0
    ).all()
    assert (picture.label[np.isinf(picture.depth)] == 0).all()
    # The wall is 3 m wide: its edges are at +-1.5 / 12 of the focal length.
    u = np.flatnonzero(picture.label[40] == BUILDING)
    half = 1.5 / 12 * camera.intrinsics[0, 0]
    assert abs(u.min() - (camera.intrinsics[0, 2] - half)) <= 1 and abs(u.max() - (camera.intrinsics[0, 2] + half)) <= 1


def test_fisheye_depth_agrees_with_projection_and_unseen_corners_are_black(plain):
    lens = Distortion("fisheye", (0.02, -0.01, 0.0, 0.0))
    intrinsics = np.array([[52.0, 0, 79.5], [0, 52.0, 59.5], [0, 0, 1]])
    camera = CameraModel("left", (160, 120), intrinsics, _looking(0.0, 20.0, (0, 0, 1.5)), 0.0, lens)
    picture = shown(plain, camera)
    model = Camera("left", Path(), intrinsics, inverse(camera.camera_to_ego), lens, (160, 120))
    v, u = np.nonzero(picture.label == ROAD)
    pixels = np.column_stack([u, v]).astype(float)
    rays = model.rays(pixels)  # what the lens model says; down they go until they meet z = 0
    down = (rays @ camera.camera_to_ego[:3, :3].T)[:, 2]
    np.testing.assert_allclose(picture.depth[v, u], 1.5 / -down * rays[:, 2], rtol=1e-3)
    back, _ = model.project(1.5 / -down[:, None] * (rays @ camera.camera_to_ego[:3, :3].T) + [0, 0, 1.5])
    np.testing.assert_allclose(back, pixels, atol=1e-3)
    centre, depth = model.project(np.array([(12.0, 0.0, 2.0)]))
    at = tuple(np.rint(centre[0, ::-1]).astype(int))
    assert picture.label[at] == BUILDING and picture.depth[at] == pytest.approx(depth[0], rel=0.02)
    corner = ~np.isfinite(model.rays(np.array([[0.0, 0.0]]))).all()
    assert corner and (picture.image[0, 0] == 0).all() and picture.label[0, 0] == 0


def test_the_sun_casts_the_shadow_of_the_wall(plain):
    """Seen from above: the ground from which the wall hides the sun is darker than the rest, the more the lower."""
    camera = CameraModel("above", (200, 200), _pinhole(200, 200, 60.0), _looking(0.0, 90.0, (12.5, 0.0, 45.0)))
    picture = shown(plain, camera)
    model = Camera("above", Path(), camera.intrinsics, inverse(camera.camera_to_ego), None, camera.size)
    sun = plain.weather.sun.astype(float)
    edge = np.linspace(-1.2, 1.2, 7)
    foot = np.column_stack(
        [12.5 - sun[0] / sun[2] * 4 + 0 * edge, edge - sun[1] / sun[2] * 4, 0 * edge]
    )  # of rays at 4 m
    lit = np.column_stack([12.5 + sun[0] / sun[2] * 4 + 0 * edge, edge + sun[1] / sun[2] * 4, 0 * edge])
    bright = []
    for points in (foot, lit):
        u, v = np.rint(model.project(points)[0]).astype(int).T
        keep = picture.label[v, u] == ROAD
        assert keep.sum() >= 3
        bright.append(picture.image[v[keep], u[keep]].astype(float).mean())
    assert bright[0] < 0.8 * bright[1]


def test_the_same_seed_gives_the_same_picture_and_noise_another():
    shot = next(iter(world.simulate("nuscenes", place="motorway", seed=2, frames=1, image_scale=0.1))).cameras[1]
    first, second = shot.render(), shot.render()
    assert (first.image == second.image).all() and (first.depth == second.depth).all()


def test_pictures_show_daylight_with_contrast():
    shot = next(iter(world.simulate("nuscenes", place="street", seed=3, frames=1, image_scale=0.2))).cameras[0]
    picture = shot.render()
    assert picture.image.shape == (180, 320, 3) and picture.image.dtype == np.uint8
    assert 50 < picture.image.mean() < 200 and picture.image.std() > 25
    assert len(np.unique(picture.label)) >= 8


def agreement(frame: WorldFrame, shot: CameraShot, picture: Picture) -> tuple[float, float, float, int]:
    """Of the still, solid LiDAR points away from edges: the share that the camera sees too, and of those the shares
    whose pixel has their depth (2 % + 5 cm) and their class."""
    scan = frame.scan
    to_camera = inverse(shot.ego_to_world @ shot.camera_to_ego) @ scan.ego_to_world @ scan.lidar_to_ego
    camera = Camera(shot.name, Path(), shot.intrinsics, to_camera, shot.distortion, shot.size)
    moving = [thing.instance for thing in frame.objects if np.linalg.norm(thing.velocity) > 0.05]
    solid = ~np.isin(scan.label, [VEGETATION, TRUNK]) & ~np.isin(scan.instance, moving)
    pixels, depth = camera.project(scan.xyz[solid])
    label = scan.label[solid]
    with np.errstate(invalid="ignore"):
        inside = (pixels >= 1).all(1) & (pixels[:, 0] <= shot.size[0] - 2) & (pixels[:, 1] <= shot.size[1] - 2)
    u, v = np.rint(pixels[inside]).astype(int).T
    depth, label = depth[inside], label[inside]
    # Away from edges: the 3 x 3 pixels around are of one class and on one surface, and nothing moving or leafy.
    around = [(v + dy, u + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    classes = np.stack([picture.label[at] for at in around])
    depths = np.stack([picture.depth[at] for at in around])
    flat = (classes == classes[4]).all(0) & np.isfinite(depths).all(0)
    flat &= ~np.isin(classes[4], [VEGETATION, TRUNK]) & ~np.isin(picture.instance[v, u], moving)
    with np.errstate(invalid="ignore"):
        flat &= np.ptp(depths, axis=0) < 0.05 * depths[4] + 0.1
    tolerance = 0.02 * depth + 0.05
    hidden = picture.depth[v, u] < depth - tolerance  # the camera stands elsewhere: something may be in its way
    seen = flat & ~hidden
    near = np.abs(picture.depth[v, u] - depth) < tolerance
    return (
        float(seen.sum() / flat.sum()),
        float(near[seen].mean()),
        float((picture.label[v, u] == label)[seen].mean()),
        int(flat.sum()),
    )


@pytest.mark.parametrize(("sensor", "place"), [("nuscenes", "street"), ("kitti", "crossing"), ("ouster", "car_park")])
def test_lidar_points_agree_with_depth_and_labels_of_the_image(sensor, place):
    frame = next(iter(world.simulate(sensor, place=place, seed=3, frames=1, image_scale=0.5)))
    for shot in (frame.cameras[0], frame.cameras[-1]):
        seen, depth, label, count = agreement(frame, shot, shot.render())
        assert count > 500
        assert seen > 0.93 and depth > 0.98 and label > 0.98, (shot.name, seen, depth, label, count)
