"""The weather of a scene: where the sun stands, how bright and how cloudy the sky is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.synthetic.mesh import Floats
from clever3d.datasets.synthetic.textures import TILES, sample

_CLOUDS = TILES.index("clouds")


@dataclass(frozen=True, eq=False)
class Weather:
    """Linear RGB throughout. sun [3]: unit vector towards it. sunlight, zenith, horizon [3]. cloudy: 0 clear .. 1
    overcast. haze: share of light lost per metre. shift [2]: where in the clouds we are. exposure: factor before the
    tone curve."""

    sun: Floats
    sunlight: Floats
    zenith: Floats
    horizon: Floats
    cloudy: float
    haze: float
    shift: Floats
    exposure: float

    def sky(self, directions: Floats) -> Floats:
        """Radiance [R, 3] of the sky along unit directions [R, 3]; below the horizon, that of the ground far off."""
        up = directions[:, 2:3]
        height = np.clip(up, 0, 1)
        blend = np.clip(height, 0, 1) ** 0.42
        color = self.horizon * (1 - blend) + self.zenith * blend
        plane = directions[:, :2] / (height + 0.12) * 0.11 + self.shift
        texture = sample(_CLOUDS, plane.astype(np.float32), 0.002 + 0.004 / (height[:, 0] + 0.05))
        cover = np.clip((texture[:, :1] - 1) * 10 * 0.55 + self.cloudy * 1.9 - 0.75, 0, 1)
        near = np.clip(directions @ self.sun, 0, 1)[:, None]
        lit = self.horizon * 0.55 + 0.32 * self.sunlight * (0.35 + 0.35 * near**8) + 0.25 * self.zenith
        shade = 1 - 0.35 * np.clip(cover - 0.5, 0, 1) * (0.5 + self.cloudy)
        color = color * (1 - cover) + lit * shade * cover
        glow = near**6 * 0.12 + near**60 * 0.5 + near**900 * 6
        color = color + self.sunlight * glow * (1 - 0.85 * cover)
        far = self.horizon * np.array([0.42, 0.45, 0.42], dtype=np.float32)
        below = np.clip(-up * 6, 0, 1)
        shown: Floats = color * (1 - below) + far * below
        return shown.astype(np.float32)

    def ambient(self) -> tuple[Floats, Floats]:
        """Light from the whole sky on a level surface, and from the ground on one that faces down: [3] each."""
        overhead = 0.55 * self.zenith + 0.45 * self.horizon
        cloud = self.horizon * 0.6 + 0.25 * self.sunlight
        share = float(np.clip(self.cloudy * 1.1, 0, 1))
        above = overhead * (1 - share) + cloud * share
        ground = 0.16 * (above + self.sunlight * max(float(self.sun[2]), 0.0))
        return above.astype(np.float32), ground.astype(np.float32)


def weather(rng: np.random.Generator) -> Weather:
    """A day by chance: mostly sun with clouds, sometimes overcast, sometimes low light."""
    kind = rng.choice(["clear", "fair", "overcast", "low"], p=[0.25, 0.35, 0.22, 0.18])
    elevation = np.radians(rng.uniform(10, 20) if kind == "low" else rng.uniform(26, 62))
    azimuth = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    # Longer ways through the air take out blue first (our choice of constants).
    air = 1 / (np.sin(elevation) + 0.08)
    sunlight = 3.4 * np.exp(-np.array([0.07, 0.13, 0.24]) * air)
    cloudy = {
        "clear": rng.uniform(0.0, 0.2),
        "fair": rng.uniform(0.28, 0.55),
        "overcast": rng.uniform(0.9, 1.0),
        "low": rng.uniform(0.1, 0.45),
    }[str(kind)]
    if kind == "overcast":
        sunlight = sunlight * 0.16
    blue = np.array([0.16, 0.30, 0.62]) * rng.uniform(0.8, 1.1)
    pale = np.array([0.62, 0.72, 0.85]) * rng.uniform(0.9, 1.1)
    if kind == "low":
        pale = pale * np.array([1.1, 0.92, 0.75])
    grey = np.array([0.62, 0.65, 0.69])
    share = 0.92 if kind == "overcast" else 0.25 * cloudy
    zenith, horizon = blue * (1 - share) + grey * 0.85 * share, pale * (1 - share) + grey * share
    lit = float(sunlight.mean() * sun[2] + zenith.mean() * 0.8)
    return Weather(
        sun=sun.astype(np.float32),
        sunlight=sunlight.astype(np.float32),
        zenith=zenith.astype(np.float32),
        horizon=horizon.astype(np.float32),
        cloudy=float(cloudy),
        haze=float(rng.uniform(0.0008, 0.0028)),
        shift=rng.random(2).astype(np.float32),
        exposure=float(0.62 / max(lit, 0.2) ** 0.72 * rng.uniform(0.9, 1.15)),
    )
