"""Images without any graphics library: MuJoCo's ray caster where something moves, a stored image elsewhere.

The table and the background never move, so their colours are computed once. For each image the bounding boxes of
the moving geoms are projected to screen rectangles; `mj_multiRay` casts rays through those pixels only, and once
more from the lamp to the table where a shadow can fall. Normals of all primitives come from one formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import mujoco
import numpy as np

from rlinf.envs.tabletop import scene

#: Light: ambient share, diffuse share, and the brightness left in a shadow.
AMBIENT: Final = 0.42
DIFFUSE: Final = 0.66
SHADOW: Final = 0.62
#: A cylinder's or box's hit point is that close (m) to the face that it lies on.
_SKIN: Final = 1e-4
_GROUPS: Final = np.array([0, 1, 1, 1, 0, 0], np.uint8)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """position [3] (m); rotation [3, 3]: rows are the camera's right, up and backward axes; fovy (degrees)."""

    position: np.ndarray
    rotation: np.ndarray
    fovy: float


def look_at(
    position: tuple[float, float, float] = scene.CAMERA_POSITION,
    target: tuple[float, float, float] = scene.CAMERA_TARGET,
    fovy: float = scene.CAMERA_FOVY,
) -> Camera:
    """A camera at `position` that looks at `target`, z up."""
    back = np.subtract(position, target)
    back = back / np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right = right / np.linalg.norm(right)
    return Camera(
        position=np.array(position, float), rotation=np.stack([right, np.cross(back, right), back]), fovy=fovy
    )


class RayCaster:
    """Draws one scene; calling it returns a new image [size, size, 3] uint8 of the data's present state.

    samples: rays along each edge of a pixel (2 smooths the edges). shadows: whether things shade the table.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: Camera,
        size: int,
        *,
        samples: int = 1,
        shadows: bool = True,
    ) -> None:
        self._model, self._data, self._camera = model, data, camera
        self._samples, self._shadows = samples, shadows
        self._side = side = size * samples
        self._focal = side / 2 / np.tan(np.radians(camera.fovy) / 2)
        pixel = np.arange(side) + 0.5 - side / 2
        grid = np.stack(np.broadcast_arrays(pixel[None, :], -pixel[:, None], -self._focal), axis=-1)
        rays = grid.reshape(-1, 3) @ camera.rotation
        self._rays = np.ascontiguousarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))
        self._index_geoms()
        self._paint_background()
        n = side * side
        self._hit = np.empty(n, np.int32)
        self._distance = np.empty(n)

    def _index_geoms(self) -> None:
        model = self._model
        self._moving = np.flatnonzero(_GROUPS[model.geom_group] & (model.geom_bodyid > 0))
        assert (model.geom_group[self._moving] != scene.STATIC).all()
        self._row = np.zeros(model.ngeom, np.int64)
        self._row[self._moving] = np.arange(len(self._moving))
        boxes = model.geom_aabb[self._moving]
        signs = np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, 8)
        # [G, 3, 8]: the corners of each geom's bounding box in its own frame.
        self._corners = boxes[:, :3, None] + boxes[:, 3:, None] * signs
        self._casts = model.geom_group[self._moving] != scene.ARM

    def _paint_background(self) -> None:
        """Colours of everything that stands still, and where the table's pixels are."""
        origin, rays = self._camera.position, self._rays
        with np.errstate(divide="ignore"):
            to_table = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        points = origin + np.minimum(to_table, 50.0)[:, None] * rays
        offset = points[:, :2] - (0.0, 0.06)
        on_table = (np.abs(offset) < scene.TABLE).all(axis=1) & np.isfinite(to_table)
        floor = np.array(scene.FLOOR_RGB) * np.linspace(1.1, 0.75, self._side).repeat(self._side)[:, None]
        tiles = (np.floor(offset[:, 0] / 0.06) + np.floor(offset[:, 1] / 0.06)) % 2
        lamp = np.array(scene.LIGHT) - points
        lamp = lamp[:, 2] / np.linalg.norm(lamp, axis=1)
        wood = np.array(scene.TABLE_RGB) * (1.0 - 0.035 * tiles)[:, None] * lamp[:, None]
        color = np.where(on_table[:, None], wood, floor)
        self._bare = np.clip(255 * color, 0, 255).astype(np.float32)
        self._background = self._bare
        self._on_table = on_table.reshape(self._side, self._side)
        self._table_points = points
        self._lamp_rays = np.ascontiguousarray(points - scene.LIGHT)

    def set_zone(self, centre: tuple[float, ...] | None) -> None:
        """Paint the target zone around `centre` [2] (m) onto the table, or remove it (None)."""
        self._background = self._bare
        if centre is None:
            return
        distance = np.linalg.norm(self._table_points[:, :2] - centre, axis=1)
        edge = np.abs(distance - 0.85 * scene.ZONE_RADIUS) < 0.15 * scene.ZONE_RADIUS
        inside = distance < scene.ZONE_RADIUS
        paint = 255 * np.array(scene.ZONE_RGB, np.float32)
        share = np.where(edge, 1.0, np.where(inside, 0.55, 0.0)).astype(np.float32)[:, None]
        share *= self._on_table.reshape(-1, 1)
        self._background = (1 - share) * self._bare + share * paint

    def __call__(self) -> np.ndarray:
        data = self._data
        centres = data.geom_xpos[self._moving]
        turns = data.geom_xmat[self._moving].reshape(-1, 3, 3)
        corners = centres[:, :, None] + turns @ self._corners
        image = self._background.copy()
        if self._shadows:
            self._shade_table(image, corners[self._casts])
        self._draw_geoms(image, corners, centres, turns)
        if self._samples > 1:
            s, k = self._side // self._samples, self._samples
            image = image.reshape(s, k, s, k, 3).mean(axis=(1, 3))
        size = self._side // self._samples
        return image.reshape(size, size, 3).astype(np.uint8)

    def _draw_geoms(
        self, image: np.ndarray, corners: np.ndarray, centres: np.ndarray, turns: np.ndarray
    ) -> None:
        pixels = np.flatnonzero(self._mask(corners))
        rays = self._rays[pixels]
        hit, distance = self._cast(self._camera.position, rays)
        seen = np.flatnonzero(hit >= 0)
        pixels, rays, distance = pixels[seen], rays[seen], distance[seen]
        row = self._row[hit[seen]]
        image[pixels] = self._colors(row, rays, distance, centres, turns)

    def _colors(
        self, row: np.ndarray, rays: np.ndarray, distance: np.ndarray, centres: np.ndarray, turns: np.ndarray
    ) -> np.ndarray:
        """Shaded colours [K, 3] float32 of K hits; row [K]: which moving geom was hit.

        The normal is the direction from the geom's core (the point of a sphere, the segment of a capsule, a box
        a little smaller than a box) to the hit point; of a cylinder the axial part decides at the caps.
        """
        types, sizes = self._model.geom_type[self._moving], self._model.geom_size[self._moving]
        core = np.zeros_like(sizes)
        weight = np.ones_like(sizes)
        box, cylinder = types == mujoco.mjtGeom.mjGEOM_BOX, types == mujoco.mjtGeom.mjGEOM_CYLINDER
        capsule = types == mujoco.mjtGeom.mjGEOM_CAPSULE
        core[box] = sizes[box] - _SKIN
        core[cylinder, 2] = sizes[cylinder, 1] - _SKIN
        core[capsule, 2] = sizes[capsule, 1]
        weight[cylinder, 2] = 1e5
        origin = np.einsum("gji,gj->gi", turns, self._camera.position - centres)
        lamp = np.einsum("gji,gj->gi", turns, np.array(scene.LIGHT) - centres)
        lamp /= np.linalg.norm(lamp, axis=1, keepdims=True)
        point = origin[row] + distance[:, None] * np.einsum("kji,kj->ki", turns[row], rays)
        limit = core[row]
        normal = (point - np.clip(point, -limit, limit)) * weight[row]
        facing = np.einsum("ki,ki->k", normal, lamp[row]) / np.sqrt(np.einsum("ki,ki->k", normal, normal))
        light = AMBIENT + DIFFUSE * np.maximum(facing, 0.0)
        paint = 255 * self._model.geom_rgba[self._moving, :3]
        return np.minimum(paint[row] * light[:, None], 255.0)

    def _shade_table(self, image: np.ndarray, corners: np.ndarray) -> None:
        """Darken the table where the straight line to the lamp is blocked."""
        lamp = np.array(scene.LIGHT)[:, None]
        reach = lamp[2] / np.maximum(lamp[2] - corners[:, 2:], 1e-6)
        mask = self._mask(lamp + (corners - lamp) * reach)
        pixels = np.flatnonzero(mask & self._on_table)
        hit, distance = self._cast(np.array(scene.LIGHT), self._lamp_rays[pixels])
        image[pixels[(hit >= 0) & (distance < 1.0)]] *= SHADOW

    def _cast(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Geom [K] (-1: none) and distance [K] in units of the ray's length of the first moving geom hit."""
        n = len(rays)
        hit, distance = self._hit[:n], self._distance[:n]
        if n:
            mujoco.mj_multiRay(
                self._model,
                self._data,
                origin,
                rays.reshape(-1),
                _GROUPS,
                0,
                -1,
                hit,
                distance,
                n,
                mujoco.mjMAXVAL,
            )
        return hit, distance

    def _mask(self, corners: np.ndarray) -> np.ndarray:
        """Pixels [side, side] bool inside the screen rectangle of any of the point sets [G, 3, 8]."""
        side, camera = self._side, self._camera
        local = camera.rotation @ (corners - camera.position[:, None])
        depth = np.maximum(-local[:, 2], 1e-3)
        u = self._focal * local[:, 0] / depth + side / 2
        v = side / 2 - self._focal * local[:, 1] / depth
        lows = np.stack([u.min(1), v.min(1)]).astype(np.int64)
        highs = np.stack([u.max(1), v.max(1)]).astype(np.int64) + 1
        lows, highs = np.clip(lows, 0, side), np.clip(highs, 0, side)
        mask = np.zeros((side, side), bool)
        for left, top, right, bottom in zip(*lows.tolist(), *highs.tolist()):
            mask[top:bottom, left:right] = True
        return mask
