"""Secrets are written nowhere: not in the run folder, not by `config show`."""

from __future__ import annotations

import pytest
from rlinf.config import ConfigError, load, load_config
from rlinf.config.secrets import HIDDEN, redacted
from rlinf.config.show import render
from rlinf.plugins import PluginHost
from rlinf.runners.run_folder import config_yaml


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "api_key", "WANDB_API_KEY", "client-secret", "password", "aws_access_key"]
)
def test_keys_that_name_secrets(key: str) -> None:
    assert redacted({"a": [{key: "s3cret"}]}) == {"a": [{key: HIDDEN}]}


@pytest.mark.parametrize(
    "entry", [{"tokenizer": "a"}, {"visual_tokens": 16}, {"token": 3}, {"tokens": "a"}, {"token": ""}]
)
def test_what_is_no_secret_stays(entry: dict[str, object]) -> None:
    assert redacted(entry) == entry


def test_a_secret_from_the_environment_is_shown_nowhere(
    own_host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    own_host.register_model("keyed", lambda cfg, torch_dtype: None)
    changes = ["model.model_type=keyed", "~model.tiny_vla", "model.keyed={hub_token: '${oc.env:MY_TOKEN}'}"]
    loaded = load("tabletop_ppo", changes)
    assert loaded.config.subtree("model")["hub_token"] == "s3cret", "the run itself has it"
    for text in (render(loaded, origins=True), config_yaml(loaded.config)):
        assert "s3cret" not in text and HIDDEN in text


@pytest.mark.parametrize(
    "override",
    [
        "env.tabletop.api_key=s3cret",
        "env.runtime_env.env_vars.HF_TOKEN={a: s3cret}",
        "env.runtime_env.env_vars.HF_TOKEN='s3cret",
        "env.runtime_env={py_executable: /x, env_vars: {HF_TOKEN: [s3cret]}}",
        "env.runtime_env={py_executable: /x, env_vars: {'HF_TOKEN' : s3cret}, other: 1}",
    ],
)
def test_an_error_about_a_secret_does_not_show_it(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tabletop_ppo", [override])
    assert "s3cret" not in str(caught.value) and f"={HIDDEN}'" in str(caught.value)


def test_the_origin_of_a_secret_does_not_show_it(own_host: PluginHost) -> None:
    own_host.register_model("keyed", lambda cfg, torch_dtype: None)
    changes = ["model.model_type=keyed", "~model.tiny_vla", "model.keyed.hub_token=s3cret"]
    assert "s3cret" not in render(load("tabletop_ppo", changes), origins=True)
