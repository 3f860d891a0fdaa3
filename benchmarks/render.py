"""Images per second of the tabletop simulator on one core, and what the ways to draw one image cost.

`OMP_NUM_THREADS=1 python benchmarks/render.py [--size 64] [--seconds 3]` plays the scripted expert and
draws one image for each control step, physics included, then times the parts on the states met on the way:

- rectangles: what the simulator does, `mj_multiRay` through the pixels that something moving can cover;
- everywhere: `mj_multiRay` through every pixel;
- analytic: closed-form intersections of the same primitives in numpy, one rectangle per primitive;
- egl: MuJoCo's OpenGL renderer with its fast settings, where the machine has the library.

Times are CPU time of this process (all its threads), so that other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import mujoco
import numpy as np
from rlinf.envs.tabletop import TabletopConfig, make_tabletop
from rlinf.envs.tabletop.env import TabletopEnv
from rlinf.envs.tabletop.expert import ScriptedExpert
from rlinf.envs.tabletop.gl import GlError, GlRenderer
from rlinf.envs.tabletop.raycast import AMBIENT, DIFFUSE, RayCaster, look_at
from rlinf.envs.tabletop.scene import LIGHT


class AnalyticCaster(RayCaster):
    """The same image without `mj_multiRay`: each primitive is solved in its own rectangle."""

    def _draw_geoms(self, image, mask, centres, turns):
        side = self._side
        depth = np.full(side * side, np.inf)
        model = self._model
        boxes = model.geom_aabb[self._moving]
        signs = np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, 8)
        corners = boxes[:, :3, None] + boxes[:, 3:, None] * signs
        corners = (centres[:, :, None] + turns @ corners).transpose(1, 0, 2)
        grid = np.arange(side * side).reshape(side, side)
        for g, (left, top, right, bottom) in enumerate(self._rectangles(corners)):
            pixels = grid[top:bottom, left:right].ravel()
            if not len(pixels):
                continue
            rays = self._rays[pixels] @ turns[g]
            origin = (self._camera.position - centres[g]) @ turns[g]
            geom = self._moving[g]
            distance = intersect(model.geom_type[geom], model.geom_size[geom], origin, rays)
            near = distance < depth[pixels]
            pixels, rays, distance = pixels[near], rays[near], distance[near]
            depth[pixels] = distance
            point = origin + distance[:, None] * rays
            normal = (point - np.clip(point, -self._core[g], self._core[g])) * self._weight[g]
            lamp = (np.array(LIGHT) - centres[g]) @ turns[g]
            facing = normal @ (lamp / np.linalg.norm(lamp)) / np.linalg.norm(normal, axis=1)
            light = AMBIENT + DIFFUSE * np.maximum(facing, 0.0)
            image[pixels] = np.minimum(self._paint[g] * light[:, None], 255.0)


def intersect(kind: int, size: np.ndarray, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Distance [K] along unit rays [K, 3] from origin [3], both in the primitive's frame; inf for a miss."""
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return slabs(origin, rays, size)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return sphere(origin, rays, size[0])
    side = tube(origin, rays, size[0], size[1])
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return np.minimum(side, caps(origin, rays, size[0], size[1]))
    ends = [sphere(origin - np.array([0.0, 0.0, z]), rays, size[0]) for z in (size[1], -size[1])]
    return np.minimum(side, np.minimum(*ends))


def slabs(origin: np.ndarray, rays: np.ndarray, half: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        one, two = (-half - origin) / rays, (half - origin) / rays
    near, far = np.minimum(one, two).max(axis=1), np.maximum(one, two).min(axis=1)
    return np.where((near <= far) & (near > 0), near, np.inf)


def sphere(origin: np.ndarray, rays: np.ndarray, radius: float) -> np.ndarray:
    b = rays @ origin
    return _first_root(np.ones_like(b), b, origin @ origin - radius * radius)


def tube(origin: np.ndarray, rays: np.ndarray, radius: float, half: float) -> np.ndarray:
    flat = rays[:, :2]
    t = _first_root((flat * flat).sum(axis=1), flat @ origin[:2], origin[:2] @ origin[:2] - radius * radius)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(origin[2] + t * rays[:, 2]) <= half, t, np.inf)


def caps(origin: np.ndarray, rays: np.ndarray, radius: float, half: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (np.sign(origin[2]) * half - origin[2]) / rays[:, 2]
        x, y = origin[0] + t * rays[:, 0], origin[1] + t * rays[:, 1]
        return np.where((t > 0) & (x * x + y * y <= radius * radius), t, np.inf)


def _first_root(a: np.ndarray, b: np.ndarray, c: float) -> np.ndarray:
    """Smaller positive root of a t² + 2 b t + c, inf where there is none."""
    d = b * b - a * c
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (-b - np.sqrt(d)) / a
    return np.where((d >= 0) & (t > 0), t, np.inf)


def play(env: TabletopEnv, seconds: float) -> tuple[float, float, float]:
    """Images per second with physics, microseconds of physics per control step, of one reset."""
    episodes = [replay(env, seed) for seed in range(20)]
    images, spent, resets, resetting, physics = 0, 0.0, 0, 0.0, 0.0
    while spent < seconds:
        for seed, actions in enumerate(episodes):
            start = time.process_time()
            env.reset(seed=seed)
            resetting, resets = resetting + time.process_time() - start, resets + 1
            start = time.process_time()
            for action in actions:
                env.step(action)
            spent, images = spent + time.process_time() - start, images + len(actions)
    steps = 0
    for seed, actions in enumerate(episodes):
        env.reset(seed=seed)
        for action in actions:
            env._command(action)
            start = time.process_time()
            mujoco.mj_step(env.model, env.data, nstep=env.config.substeps)
            physics, steps = physics + time.process_time() - start, steps + 1
    return images / spent, 1e6 * physics / steps, 1e6 * resetting / resets


def replay(env: TabletopEnv, seed: int) -> list[np.ndarray]:
    """The expert's actions of one episode, so that its own cost is not measured."""
    env.reset(seed=seed)
    expert, actions, done = ScriptedExpert(env), [], False
    while not done:
        actions.append(expert.act())
        *_, terminated, truncated, _ = env.step(actions[-1])
        done = terminated or truncated
    return actions


def microseconds(draw: Callable[[], np.ndarray], env: TabletopEnv, prepare: Callable[[], None]) -> float:
    """Mean time of one image over the middle of ten episodes."""
    spent, images = 0.0, 0
    for seed in range(10):
        actions = replay(env, seed)
        env.reset(seed=seed)
        prepare()
        for action in actions[: len(actions) // 2 + 2]:
            env._advance(action)
        draw()
        start = time.process_time()
        for _ in range(20):
            draw()
        spent, images = spent + time.process_time() - start, images + 20
    return 1e6 * spent / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to play for")
    args = parser.parse_args()
    env = make_tabletop(TabletopConfig(image_size=args.size))
    rate, physics, reset = play(env, args.seconds)
    print(f"images/s, physics included ({args.size} px, shadows)  {rate:8.0f}")
    print(f"physics of one control step                      {physics:8.0f} us")
    print(f"reset with its first image                       {reset:8.0f} us")

    scene = (env.model, env.data, look_at(), args.size)
    everywhere, analytic = RayCaster(*scene, shadows=False), AnalyticCaster(*scene, shadows=False)
    everywhere._inside = lambda _: np.ones((args.size, args.size), bool)  # type: ignore[method-assign]
    casters = {
        "rectangles, with shadows": RayCaster(*scene),
        "rectangles": RayCaster(*scene, shadows=False),
        "everywhere": everywhere,
        "analytic": analytic,
    }
    costs = {
        name: microseconds(caster, env, lambda c=caster: c.begin(None)) for name, caster in casters.items()
    }
    try:
        gl = GlRenderer(*scene, backend="egl")
        costs["egl"] = microseconds(gl, env, lambda: None)
    except GlError as error:
        print(f"egl: {error}")
    for name, cost in costs.items():
        print(f"one image, {name:25s}             {cost:8.0f} us   x{cost / costs['rectangles']:.2f}")
    difference = np.abs(analytic().astype(int) - casters["rectangles"]().astype(int)).max(axis=-1)
    print(f"pixels in which analytic and rectangles differ by more than 2: {(difference > 2).sum()}")


if __name__ == "__main__":
    main()
