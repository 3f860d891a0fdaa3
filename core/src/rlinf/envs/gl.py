"""Offscreen OpenGL rendering of MuJoCo scenes, fast on a CPU, with EGL or OSMesa chosen by name.

MuJoCo reads its backend from the variable MUJOCO_GL when it is first imported, for the whole process. Here
the context is made explicitly instead: no variable matters, nor who imported mujoco first.
"""

from __future__ import annotations

import atexit
import ctypes.util
import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from rlinf.envs.results import EnvError

if TYPE_CHECKING:
    import mujoco

Backend = Literal["auto", "egl", "osmesa"]

#: System library behind a backend, and what installs it.
_LIBRARIES: Final = {
    "egl": ("EGL", "apt-get install -y libegl1 libgl1"),
    "osmesa": ("OSMesa", "apt-get install -y libosmesa6"),
}
_MAX_GEOMS: Final = 2000


def find_backend(wanted: Backend) -> Literal["egl", "osmesa"]:
    """The backend to use: `wanted`, or for "auto" EGL where its library is installed, else OSMesa.

    Raises EnvError with the command that installs the missing system library.
    """
    candidates: tuple[Literal["egl", "osmesa"], ...] = ("egl", "osmesa") if wanted == "auto" else (wanted,)
    for name in candidates:
        if ctypes.util.find_library(_LIBRARIES[name][0]):
            return name
    library, command = _LIBRARIES[candidates[0]]
    raise EnvError(f"rendering with {wanted!r} needs the system library lib{library}: {command}")


def _backend_module(name: str) -> ModuleType:
    """mujoco's module of a backend. PyOpenGL, below it, serves one backend per process."""
    for other in _LIBRARIES:
        if other != name and f"mujoco.{other}" in sys.modules:
            raise RuntimeError(f"this process draws with {other} already, and can draw with one backend only")
    before = os.environ.get("PYOPENGL_PLATFORM")
    try:
        return import_module(f"mujoco.{name}")
    finally:
        # Importing it sets the variable, which child processes would inherit whatever backend they want.
        if before is None:
            os.environ.pop("PYOPENGL_PLATFORM", None)


class OffscreenRenderer:
    """Draws the scenes of one model, or of models compiled from the same XML, without a window.

    Multisampling and the shadow map are switched off (in `model.vis` too): on a CPU they cost ten times the
    image. Every call makes the context current first, because destroying any other EGL context of the process
    unbinds it, after which OpenGL silently draws nothing.

    Raises EnvError where the system library is missing, RuntimeError where it makes no context.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, backend: Backend = "auto") -> None:
        import mujoco

        name = find_backend(backend)
        quality, screen = model.vis.quality, model.vis.global_
        quality.offsamples = quality.shadowsize = 0
        screen.offwidth, screen.offheight = max(screen.offwidth, width), max(screen.offheight, height)
        try:
            self._gl = _backend_module(name).GLContext(width, height)
            self._gl.make_current()
        except Exception as error:
            raise RuntimeError(
                f"no {name} context could be made ({type(error).__name__}: {error}); "
                f"install a software renderer: {_LIBRARIES[name][1]}"
            ) from error
        atexit.register(self.close)  # before the backend's own clean-up, which makes later frees fail
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._closed = False

    def render(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> np.ndarray:
        """Image [H,W,3] uint8 of the fixed camera with that id, turned upright where it hangs upside down."""
        import mujoco

        self._gl.make_current()
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(self._rect, self._scene, self._context)
        pixels = np.zeros((self._rect.height, self._rect.width, 3), np.uint8)  # a failed read stays black
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        # OpenGL's rows go upwards: left so, with the columns mirrored, the image is rotated by 180 degrees.
        upside_down = data.cam_xmat[camera][7] < 0
        return np.ascontiguousarray(pixels[:, ::-1] if upside_down else pixels[::-1])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._gl.make_current()
        self._context.free()
        self._gl.free()
