"""Images by MuJoCo's OpenGL renderer, for machines that have EGL or OSMesa."""

from __future__ import annotations

import importlib
from typing import Final

import mujoco
import numpy as np
from mujoco import gl_context

from rlinf.envs.tabletop import scene
from rlinf.envs.tabletop.raycast import Camera

INSTALL: Final = {
    "egl": "apt-get install -y libegl1 libgl1-mesa-dri",
    "osmesa": "apt-get install -y libosmesa6",
}


class GlError(RuntimeError):
    """The OpenGL library is missing, or it draws nothing."""


class GlRenderer:
    """Draws one scene; calling it returns an image [size, size, 3] uint8.

    Raises GlError with the install command when the library of `backend` (egl, osmesa) cannot be used, or
    when an image comes out in one colour.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, size: int, *, backend: str
    ) -> None:
        self._data, self._backend = data, backend
        model.vis.global_.fovy = camera.fovy
        try:
            # mujoco picks its context by an environment variable while it is imported; here the configuration
            # picks it, at any time.
            gl_context.GLContext = importlib.import_module(f"mujoco.{backend}").GLContext
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:
            raise GlError(
                f"renderer {backend!r} is not usable here ({error}); install it with `{INSTALL[backend]}`, "
                "or set env.tabletop.renderer=raycast, which needs no library"
            ) from error
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._camera = _free_camera()

    def __call__(self) -> np.ndarray:
        self._renderer.update_scene(self._data, self._camera, _options())
        image = self._renderer.render()
        if image.min() == image.max():
            raise GlError(f"renderer {self._backend!r} drew one colour everywhere: its context was lost")
        return image

    def close(self) -> None:
        self._renderer.close()


def _free_camera() -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    away = np.subtract(scene.CAMERA_TARGET, scene.CAMERA_POSITION)
    camera.lookat[:] = scene.CAMERA_TARGET
    camera.distance = float(np.linalg.norm(away))
    camera.azimuth = float(np.degrees(np.arctan2(away[1], away[0])))
    camera.elevation = float(np.degrees(np.arcsin(away[2] / camera.distance)))
    return camera


def _options() -> mujoco.MjvOption:
    options = mujoco.MjvOption()
    options.geomgroup[:] = 1
    options.sitegroup[:] = 1
    return options
