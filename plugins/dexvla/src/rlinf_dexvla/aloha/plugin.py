"""The environment's entry point. Imports neither torch nor MuJoCo."""

from __future__ import annotations

from rlinf.plugins import EnvSpec, hookimpl

_SPEC = EnvSpec(
    env_type="aloha",
    factory="rlinf_dexvla.aloha.env:make_env",
    config_schema="rlinf_dexvla.aloha.config:AlohaConfig",
    expert="rlinf_dexvla.aloha.expert:AlohaExpert",
    install_hint="pip install 'rlinf-plugin-dexvla[aloha]'",
    description="Two ViperX arms of ALOHA in MuJoCo (gym-aloha): cube transfer and peg insertion.",
)


@hookimpl
def rlinf_env_spec(env_type: str) -> EnvSpec | None:
    return _SPEC if env_type == _SPEC.env_type else None
