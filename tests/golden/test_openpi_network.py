"""pi0 and pi0.5 against openpi's PyTorch models: loss, gradients, sampling, and what lies between."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from openpi_case import close, network, observation
from rlinf_openpi.network.sampling import sample_actions

#: openpi's own deviation between equivalent computations, with room for another order of summation.
LOSS, VELOCITY, SAMPLE = 1e-4, 2e-5, 2e-5


class Pi0Cases:
    """Tests of one family; a subclass names it."""

    def test_loss_and_gradients(self, case: Any) -> None:
        net, inputs = network(case), case.inputs
        loss = net.flow_loss(observation(case), inputs["actions"], inputs["noise"], inputs["time"])
        close(loss, case.outputs["loss"], LOSS, "loss")
        loss.mean().backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        for name in case.outputs:
            kind, _, parameter = name.partition(".")
            if kind == "grad":
                close(gradients[parameter], case.outputs[name], 2e-6, name)
            elif kind == "grad_norm":
                grad, expected = gradients[parameter], float(case.outputs[name])
                norm = 0.0 if grad is None else float(grad.norm())
                assert math.isclose(norm, expected, rel_tol=1e-4, abs_tol=2e-6), f"{name}: {norm}, {expected}"
        for parameter in case.config["parameters_without_grad"]:
            assert gradients.get(parameter) is None, f"{parameter} has a gradient"

    @torch.no_grad()
    def test_sampling(self, case: Any) -> None:
        net, obs, noise = network(case), observation(case), case.inputs["noise"]
        steps = case.config["reference"]["num_sample_steps"]
        chain = torch.stack(list(sample_actions(net, net.prefix(obs), obs.state, noise, steps)))
        close(chain, case.outputs["sample_trajectory"], SAMPLE, "sample_trajectory")
        close(chain[-1], case.outputs["sampled_actions"], SAMPLE, "sampled_actions")

    @torch.no_grad()
    def test_velocity(self, case: Any) -> None:
        net, obs = network(case), observation(case)
        prefix = net.prefix(obs)
        velocities = [
            net.velocity(net.suffix_hidden(x_t, t, obs.state, prefix))
            for x_t, t in zip(case.inputs["velocity_x_t"], case.inputs["velocity_t"])
        ]
        close(torch.stack(velocities), case.outputs["velocity"], VELOCITY, "velocity")

    @torch.no_grad()
    def test_prefix(self, case: Any) -> None:
        net, obs, outputs = network(case), observation(case), case.outputs
        length = obs.tokens.shape[1]
        tokens, mask = net.embed_prefix(obs, compact=False)
        assert mask is not None
        assert torch.equal(mask.long(), outputs["prefix_pad_mask"].long())
        assert torch.equal(mask.cumsum(dim=1) - 1, outputs["prefix_position_ids"])
        close(tokens[:, -length:], outputs["language_embeddings"], 1e-5, "language_embeddings")
        patches = net.sizes.vision.tokens
        close(tokens[:1, :patches], outputs["image_tokens_camera0_sample0"], 1e-5, "image tokens")
        hidden = net.prefix(obs, hidden=True, reference_padding=True).hidden
        assert hidden is not None
        close(hidden[:, -length:], outputs["prefix_hidden_language"], 2e-5, "with the reference's padding")
        compacted = net.prefix(obs, hidden=True).hidden
        assert compacted is not None
        for row, (got, expected) in enumerate(zip(compacted, outputs["prefix_hidden_language"])):
            count = int(obs.token_mask[row].sum())
            longest = int(obs.token_mask.sum(dim=1).max())
            start = got.shape[0] - longest
            close(got[start : start + count], expected[:count], 2e-5, f"sample {row} without padding")

    @torch.no_grad()
    def test_suffix_inputs(self, case: Any) -> None:
        net, obs, inputs, outputs = network(case), observation(case), case.inputs, case.outputs
        time = inputs["time"]
        t = time[:, None, None]
        x_t = t * inputs["noise"] + (1 - t) * inputs["actions"]
        embedding = net.time_embedding(time)
        close(embedding, outputs["time_embedding"], 1e-6, "time_embedding")
        if net.pi05:
            close(net.action_tokens(x_t, None), outputs["suffix_embeddings"], 1e-5, "suffix_embeddings")
            close(net.condition(time), outputs["adarms_cond"], 1e-5, "adarms_cond")
        else:
            assert obs.state is not None
            tokens = torch.cat([net.state_token(obs.state), net.action_tokens(x_t, embedding)], dim=1)
            close(tokens, outputs["suffix_embeddings"], 1e-5, "suffix_embeddings")

    @torch.no_grad()
    def test_bfloat16(self, case: Any) -> None:
        """No further from float32 than openpi's bfloat16 mode is, and from that by no more than both."""
        net, obs, inputs, outputs = network(case), observation(case), case.inputs, case.outputs
        net.to(torch.bfloat16)
        steps = case.config["reference"]["num_sample_steps"]
        prefix = net.prefix(obs)
        *_, actions = sample_actions(net, prefix, obs.state, inputs["noise"], steps)
        found = {
            "loss": net.flow_loss(obs, inputs["actions"], inputs["noise"], inputs["time"]),
            "sampled_actions": actions,
            "velocity": torch.stack(
                [
                    net.velocity(net.suffix_hidden(x_t, t, obs.state, prefix))
                    for x_t, t in zip(inputs["velocity_x_t"], inputs["velocity_t"])
                ]
            ),
        }
        for name, got in found.items():
            own = case.config["measured_self_agreement"][f"bf16_vs_fp32.{name}"]
            close(got, outputs[name], 1.5 * own, f"{name} from float32")
            close(got, outputs[f"bf16.{name}"], 2.5 * own, f"{name} from openpi's bfloat16")

    @torch.no_grad()
    def test_batch_equals_singles(self, case: Any) -> None:
        net, obs, noise = network(case), observation(case), case.inputs["noise"]
        *_, together = sample_actions(net, net.prefix(obs), obs.state, noise, 2)
        for row in range(len(noise)):
            one = replace(
                obs,
                **{
                    name: getattr(obs, name)[row : row + 1]
                    for name in ("images", "tokens", "token_mask", "state", "image_masks")
                    if getattr(obs, name) is not None
                },
            )
            *_, alone = sample_actions(net, net.prefix(one), one.state, noise[row : row + 1], 2)
            close(alone, together[row : row + 1], SAMPLE, f"sample {row} alone")


@pytest.mark.golden("pi0")
class TestPi0(Pi0Cases):
    pass


@pytest.mark.golden("pi05")
class TestPi05(Pi0Cases):
    pass
