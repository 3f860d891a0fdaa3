"""The embedded simulator: a MuJoCo arm above a table, coloured objects and instructions about them.

The heavy parts (mujoco) are imported by `make_tabletop` only:
`rlinf.envs.tabletop.env:make_env` is the factory, `rlinf.envs.tabletop.expert:ScriptedExpert` the expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlinf.envs.tabletop.config import TabletopConfig

if TYPE_CHECKING:
    from rlinf.envs.tabletop.env import TabletopEnv

__all__ = ["TabletopConfig", "make_tabletop"]


def make_tabletop(config: TabletopConfig | None = None) -> TabletopEnv:
    """One simulator; `config` None means the defaults."""
    from rlinf.envs.tabletop.env import make_env

    return make_env(config or TabletopConfig())
