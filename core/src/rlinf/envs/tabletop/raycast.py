"""Images without any graphics library: MuJoCo's ray caster where something moves, a stored image elsewhere.

The table and the background never move, so their colours are computed once. For each image the bounding
boxes of the moving geoms are projected to screen rectangles; `mj_multiRay` casts rays through those pixels
only, and once more from the lamp to the table where a shadow can fall. Normals of all primitives come from
one formula.
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
_LAMP: Final = np.array(scene.LIGHT)
_FAR: Final = 1e10
#: Which geom groups are seen, and which cast shadows: the hand and the objects.
_SEEN: Final = np.array([0, 1, 1, 1, 0, 0], np.uint8)
_CASTING: Final = np.array([0, 1, 1, 0, 0, 0], np.uint8)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """position [3] (m); rotation [3, 3]: rows are the axes right, up and backward; fovy (degrees)."""

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
        self.begin(None)

    def _index_geoms(self) -> None:
        model = self._model
        self._moving = np.flatnonzero(_SEEN[model.geom_group])
        self._row = np.zeros(model.ngeom, np.int64)
        self._row[self._moving] = np.arange(len(self._moving))
        owners, boxes = [], []
        for index, (*centre, x, y, z) in enumerate(model.geom_aabb[self._moving].tolist()):
            # A long limb is cut into pieces along its z axis: slanted, it would cover a large rectangle.
            pieces = max(1, round(z / (3 * max(x, y))) * 3)
            for k in range(pieces):
                owners.append(index)
                boxes.append(
                    (centre[0], centre[1], centre[2] + z * ((2 * k + 1) / pieces - 1), x, y, z / pieces)
                )
        self._owner, box = np.array(owners), np.array(boxes)
        signs = np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, 8)
        # [P, 3, 8]: the corners of the bounding boxes in the frames of their geoms.
        self._corners = box[:, :3, None] + box[:, 3:, None] * signs
        self._casts = _CASTING[model.geom_group[self._moving[self._owner]]] > 0

    def _paint_background(self) -> None:
        """Colours of everything that stands still, and where the table's pixels are."""
        origin, rays = self._camera.position, self._rays
        with np.errstate(divide="ignore"):
            to_table = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        points = origin + np.minimum(to_table, 50.0)[:, None] * rays
        offset = points[:, :2] - scene.TABLE_CENTRE
        on_table = (np.abs(offset) < scene.TABLE).all(axis=1) & np.isfinite(to_table)
        floor = np.array(scene.FLOOR_RGB) * np.linspace(1.1, 0.75, self._side).repeat(self._side)[:, None]
        tiles = (np.floor(offset[:, 0] / 0.06) + np.floor(offset[:, 1] / 0.06)) % 2
        lamp = _LAMP - points
        lamp = lamp[:, 2] / np.linalg.norm(lamp, axis=1)
        wood = np.array(scene.TABLE_RGB) * (1.0 - 0.035 * tiles)[:, None] * lamp[:, None]
        color = np.where(on_table[:, None], wood, floor)
        self._bare = np.clip(255 * color, 0, 255).astype(np.float32)
        self._on_table = on_table.reshape(self._side, self._side)
        self._table_points = points
        self._lamp_rays = points - _LAMP

    def begin(self, zone: np.ndarray | None) -> None:
        """Take over what an episode fixes: shapes and colours of the geoms, the target zone's centre [2] (m).

        A geom's core is the point of a sphere, the segment of a capsule, a box a little smaller than a box:
        the normal is the direction from the core to the surface. At a cylinder's caps the axial part decides.
        """
        types, sizes = self._model.geom_type[self._moving], self._model.geom_size[self._moving]
        box, cylinder = types == mujoco.mjtGeom.mjGEOM_BOX, types == mujoco.mjtGeom.mjGEOM_CYLINDER
        capsule = types == mujoco.mjtGeom.mjGEOM_CAPSULE
        self._core, self._weight = np.zeros_like(sizes), np.ones_like(sizes)
        self._core[box] = sizes[box] - _SKIN
        self._core[cylinder, 2] = sizes[cylinder, 1] - _SKIN
        self._core[capsule, 2] = sizes[capsule, 1]
        self._weight[cylinder, 2] = 1e5
        self._paint = 255.0 * self._model.geom_rgba[self._moving, :3]
        self._background = self._bare if zone is None else self._with_zone(zone)

    def _with_zone(self, centre: np.ndarray) -> np.ndarray:
        """The background with the target zone on the table: a disc with a darker rim."""
        distance = np.linalg.norm(self._table_points[:, :2] - centre, axis=1)
        inside, rim = distance < scene.ZONE_RADIUS, distance > 0.75 * scene.ZONE_RADIUS
        share = np.where(inside & self._on_table.ravel(), np.where(rim, 1.0, 0.55), 0.0)[:, None]
        return ((1 - share) * self._bare + share * 255 * np.array(scene.ZONE_RGB)).astype(np.float32)

    def __call__(self) -> np.ndarray:
        data = self._data
        centres = data.geom_xpos[self._moving]
        turns = data.geom_xmat[self._moving].reshape(-1, 3, 3)
        # [3, P, 8]: the world coordinates of all corners.
        corners = centres.take(self._owner, 0)[:, :, None] + turns.take(self._owner, 0) @ self._corners
        corners = corners.transpose(1, 0, 2)
        shapes = [corners]
        if self._shadows:
            shapes.append(_to_table(corners[:, self._casts]))
        rectangles = self._rectangles(np.concatenate(shapes, axis=1))
        image = self._background.copy()
        if self._shadows:
            self._shade_table(image, self._inside(rectangles[len(self._owner) :]))
        self._draw_geoms(image, self._inside(rectangles[: len(self._owner)]), centres, turns)
        size, k = self._side // self._samples, self._samples
        if k > 1:
            image = image.reshape(size, k, size, k, 3).mean(axis=(1, 3))
        return image.astype(np.uint8).reshape(size, size, 3)

    def _rectangles(self, corners: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Screen rectangles (left, top, right, bottom) in pixels around the point sets [3, P, 8]."""
        side, camera = self._side, self._camera
        local = camera.rotation @ (corners.reshape(3, -1) - camera.position[:, None])
        scale = self._focal / np.maximum(-local[2], 1e-3)
        screen = side / 2 + np.stack([local[0], -local[1]]) * scale
        screen = np.clip(screen.reshape(2, -1, 8), 0, side)
        lows, highs = screen.min(axis=2).astype(np.int64), np.ceil(screen.max(axis=2)).astype(np.int64)
        return list(zip(*lows.tolist(), *highs.tolist()))

    def _inside(self, rectangles: list[tuple[int, int, int, int]]) -> np.ndarray:
        """Pixels [side, side] bool inside any of the rectangles."""
        mask = np.zeros((self._side, self._side), bool)
        for left, top, right, bottom in rectangles:
            mask[top:bottom, left:right] = True
        return mask

    def _shade_table(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Darken the table where the straight line to the lamp is blocked."""
        pixels = np.flatnonzero(mask & self._on_table)
        hit, distance = self._cast(_LAMP, self._lamp_rays.take(pixels, 0), _CASTING)
        image[pixels[(hit >= 0) & (distance < 1.0)]] *= SHADOW

    def _draw_geoms(
        self, image: np.ndarray, mask: np.ndarray, centres: np.ndarray, turns: np.ndarray
    ) -> None:
        pixels = np.flatnonzero(mask)
        rays = self._rays.take(pixels, 0)
        hit, distance = self._cast(self._camera.position, rays, _SEEN)
        seen = np.flatnonzero(hit >= 0)
        pixels, rays, distance = pixels[seen], rays.take(seen, 0), distance[seen, None]
        row = self._row[hit[seen]]
        # The camera and the lamp's direction in the frame of each geom, then the hit points in theirs.
        to_lamp = _LAMP - centres
        to_lamp /= np.sqrt(np.einsum("gi,gi->g", to_lamp, to_lamp))[:, None]
        origin = np.einsum("gj,gji->gi", self._camera.position - centres, turns)
        lamp = np.einsum("gj,gji->gi", to_lamp, turns).take(row, 0)
        point = np.einsum("kj,kji->ki", rays, turns.take(row, 0))
        point *= distance
        point += origin.take(row, 0)
        core = self._core.take(row, 0)
        normal = point - np.minimum(np.maximum(point, -core), core)
        normal *= self._weight.take(row, 0)
        facing = np.einsum("ki,ki->k", normal, lamp) / np.sqrt(np.einsum("ki,ki->k", normal, normal))
        light = AMBIENT + DIFFUSE * np.maximum(facing, 0.0)
        image[pixels] = np.minimum(self._paint.take(row, 0) * light[:, None], 255.0)

    def _cast(
        self, origin: np.ndarray, rays: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Geom [K] (-1: none) and distance [K], in ray lengths, of the first moving geom hit."""
        n = len(rays)
        hit, distance = self._hit[:n], self._distance[:n]
        if n:
            mujoco.mj_multiRay(
                self._model, self._data, origin, rays.ravel(), groups, 0, -1, hit, distance, n, _FAR
            )
        return hit, distance


def _to_table(points: np.ndarray) -> np.ndarray:
    """Where straight lines from the lamp through points [3, P, 8] meet the table."""
    lamp = _LAMP[:, None, None]
    return lamp + (points - lamp) * (lamp[2] / (lamp[2] - points[2]))
