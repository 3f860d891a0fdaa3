"""openpi's part of the case `transforms`: normalisation, padding, relative actions, resizing, the prompt's
state, and what simulators get of a policy `openpi`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rlinf.data.stats import NormStats
from rlinf.envs.action_utils import prepare_actions
from rlinf_openpi.tokenizer import PromptTokenizer
from rlinf_openpi.transforms import (
    bool_mask,
    clean_instruction,
    normalize,
    pad_to,
    pi05_prompt,
    resize_with_pad,
    state_bins,
    to_absolute,
    to_relative,
    unnormalize,
)

pytestmark = pytest.mark.golden("transforms")


def stats(case: Any, name: str) -> NormStats:
    keys = ("mean", "std", "q01", "q99")
    return NormStats(**{key: case.inputs[f"norm.{name}.{key}"].numpy() for key in keys})


def near(got: Any, expected: torch.Tensor, what: str) -> None:
    np.testing.assert_allclose(np.asarray(got), expected.numpy(), rtol=1e-6, atol=1e-7, err_msg=what)


@pytest.mark.parametrize("method", ["zscore", "quantile"])
@pytest.mark.parametrize("name", ["state", "actions"])
def test_normalisation(case: Any, method: str, name: str) -> None:
    own, x = stats(case, name), case.inputs[name].numpy()
    normalized = normalize(x, own, method)
    near(normalized, case.outputs[f"normalize.{method}.{name}"], "normalize")
    padded = pad_to(normalized, case.outputs[f"pad32.{method}.{name}"].shape[-1])
    near(padded, case.outputs[f"pad32.{method}.{name}"], "pad32")
    model = {"state": "model_state_padded", "actions": "model_actions_padded"}[name]
    raw = case.inputs[model]
    near(unnormalize(raw.numpy(), own, method), case.outputs[f"unnormalize.{method}.{name}"], "unnormalize")
    near(unnormalize(raw, own, method), case.outputs[f"unnormalize.{method}.{name}"], "of a tensor")
    near(
        normalize(torch.from_numpy(x), own, method), case.outputs[f"normalize.{method}.{name}"], "of a tensor"
    )


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_relative_actions(case: Any, kind: str) -> None:
    actions, state = case.inputs["actions"], case.inputs["state"]
    if kind == "array":
        actions, state = actions.numpy(), state.numpy()
    mask = bool_mask(case.config["plain"]["delta_mask_spec"])
    assert mask.tolist() == case.outputs["delta.mask"].bool().tolist()
    relative = to_relative(actions, state, mask)
    near(relative, case.outputs["delta.actions"], "delta")
    near(to_absolute(relative, state, mask), case.outputs["delta.absolute"], "absolute")
    assert np.array_equal(np.asarray(actions), case.inputs["actions"].numpy()), "the input was changed"


def test_resizing(case: Any) -> None:
    """As Pillow, which the policy's input path uses: within one level."""
    target = case.config["plain"]["target"]
    for number in range(len(case.config["plain"]["sizes"])):
        image = case.inputs[f"image.{number}"]
        got = resize_with_pad(image[None], target)[0].int()
        gap = (got - case.outputs[f"resize.pil.{number}"].int()).abs()
        assert int(gap.max()) <= 1, f"image {number}: up to {int(gap.max())} levels off Pillow"


def test_prompts(case: Any) -> None:
    state = case.inputs["bins.state"].numpy()
    assert state_bins(state).tolist() == case.outputs["bins.state_ids"].tolist()
    plain = case.config["plain"]
    assert pi05_prompt(plain["prompt"], state) == plain["strings"]["pi05_prompt"]
    seen: list[str] = []

    def record(text: str) -> list[int]:
        seen.append(text)
        return [5]

    assert clean_instruction(plain["prompt"]) == plain["strings"]["pi0_prompt_parts"][0]
    PromptTokenizer(record, 8, discrete_state=False)([plain["prompt"]], None)
    assert seen == plain["strings"]["pi0_prompt_parts"]


@pytest.mark.golden("transforms", each=r"prepare\.(\w+)\.openpi\.(.+)")
def test_action_processors(case: Any, match: tuple[str, str]) -> None:
    env_type, rest = match
    expected = case.outputs[f"prepare.{env_type}.openpi.{rest}"]
    context: dict[str, Any] = {}
    if env_type == "maniskill":
        policy, _, scale = rest.partition(".scale")
        context = {"policy": policy, "action_scale": float(scale)}
        raw = case.inputs["prepare.raw7"]
    else:
        raw = case.inputs[f"prepare.raw{rest}"]
    from rlinf.plugins import get_host

    get_host().model_spec("openpi")  # the run's model: its plugin contributes the processors
    near(prepare_actions(raw, env_type, "openpi", **context), expected, env_type)
