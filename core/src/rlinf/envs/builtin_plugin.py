"""The core's own environments: the module behind their entry points in the group `rlinf.envs`."""

from __future__ import annotations

from typing import Final

from rlinf.plugins import EnvSpec, hookimpl

_SPECS: Final = {
    "tabletop": EnvSpec(
        env_type="tabletop",
        factory="rlinf.envs.tabletop.env:make_env",
        config_schema="rlinf.envs.tabletop.config:TabletopConfig",
        expert="rlinf.envs.tabletop.expert:ScriptedExpert",
        description="A gripper arm and coloured objects in MuJoCo; needs no OpenGL.",
    ),
    "metaworld": EnvSpec(
        env_type="metaworld",
        factory="rlinf.envs.metaworld.env:make_env",
        config_schema="rlinf.envs.metaworld.config:MetaworldConfig",
        expert="rlinf.envs.metaworld.expert:MetaworldExpert",
        install_hint="pip install 'rlinf-core[metaworld]'",
        description="Fifty manipulation tasks of the MetaWorld benchmark with a camera image.",
    ),
    "prompts": EnvSpec(
        env_type="prompts",
        config_schema="rlinf.envs.prompts.config:PromptsConfig",
        description="Prompts for language models, and rewards for the answers.",
    ),
    "preferences": EnvSpec(
        env_type="preferences",
        config_schema="rlinf.envs.prompts.config:PreferencesConfig",
        description="Held-out pairs of answers, on which reward models are evaluated.",
    ),
}


@hookimpl
def rlinf_env_spec(env_type: str) -> EnvSpec | None:
    """The spec of one of the core's environments."""
    return _SPECS.get(env_type)
