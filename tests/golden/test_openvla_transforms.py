"""OpenVLA's part of the case `transforms`: actions as tokens, and what simulators get of both models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rlinf.envs.action_utils import prepare_actions
from rlinf_openvla.actions import inverted_gripper
from rlinf_openvla.codec import ActionTokens

pytestmark = pytest.mark.golden("transforms")
#: Of Llama's tokenizer, whose last words are actions; the case's ids are made with it.
VOCABULARY = 32000


def near(got, expected) -> None:
    np.testing.assert_allclose(np.asarray(got), expected.numpy(), rtol=1e-6, atol=1e-7)


def test_tokens(case) -> None:
    codec = ActionTokens(VOCABULARY)
    ids = codec.encode(case.inputs["openvla.actions"])
    assert torch.equal(ids, case.outputs["openvla.encoded_ids"])
    near(codec.decode(ids), case.outputs["openvla.roundtrip"])
    near(codec.decode(case.inputs["openvla.token_ids"]), case.outputs["openvla.decoded"])


@pytest.mark.golden("transforms", each=r"prepare\.(libero|metaworld|calvin)\.(openvla|openvla_oft)\.(\d+)$")
def test_simulators(case, match) -> None:
    env_type, model_type, dim = match
    raw = case.inputs[f"prepare.raw{dim}"].float()
    got = prepare_actions(raw, env_type, model_type)
    near(got, case.outputs[f"prepare.{env_type}.{model_type}.{dim}"])


@pytest.mark.golden("transforms", each=r"prepare\.maniskill\.(openvla|openvla_oft)\.([\w-]+)\.scale([\d.]+)$")
def test_maniskill(case, match) -> None:
    model_type, policy, scale = match
    raw = case.inputs["prepare.raw7"].float()
    got = prepare_actions(raw, "maniskill", model_type, action_scale=float(scale), policy=policy)
    near(got, case.outputs[f"prepare.maniskill.{model_type}.{policy}.scale{scale}"])


def test_libero_evaluation(case) -> None:
    """The official evaluation: the gripper's [0, 1] becomes the sign, inverted; else it stays linear."""
    raw = case.inputs["libero_eval.actions"]
    near(inverted_gripper(raw.numpy()), case.outputs["libero_eval.normalised_inverted"])
    linear = raw.clone()
    linear[..., -1] = 2 * linear[..., -1] - 1
    near(linear, case.outputs["libero_eval.normalised_not_binarised"])
