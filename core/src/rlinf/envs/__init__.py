"""Simulators: how they are found, stepped together, and restarted when they fail.

What an environment plugin provides: an entry point in the group `rlinf.envs` (its name is the `env_type`)
whose module implements `rlinf_env_spec`. The spec's factory makes a `gymnasium.Env` from the plugin's
configuration:

- action_space: a Box of one dimension; actions arrive clipped to it.
- observations: a dict with main_images [H,W,3] uint8, states [D] float32, task_descriptions str, and where
  there are more cameras wrist_images [H,W,3] and extra_view_images [K,H,W,3] uint8. Shapes never change.
- `reset(seed=)` begins an episode that the seed determines, whatever happened before.
- `step(action)`; the info of an episode's last step holds `success` (bool).
- optionally `chunk_step(actions [chunk, A])`: returns (observation, rewards [chunk], terminated [chunk],
  truncated [chunk], info), stops at the first done, renders once, and counts its steps in info["steps"].
- optionally `render()`, an image [H,W,3] uint8 for people.

The spec's `expert`, if there is one, is a class called with such an environment: `reset(rng)` after each of
its resets, then `act()` for each next action [A] float32.
"""
