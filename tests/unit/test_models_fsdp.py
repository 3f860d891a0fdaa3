"""The built-in policies under FSDP2 with their plugins' wrap policies, one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rlinf.config.schema import FsdpConfig, MixedPrecisionConfig, OptimConfig
from rlinf.fsdp.engine import FsdpEngine
from rlinf.models import get_model
from rlinf.plugins import get_host

OBSERVATION = {
    "main_images": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8),
    "states": torch.randn(4, 5),
    "task_descriptions": ["push the red cube", "", "a b c d e f", "go"],
}
UNITS = {
    "mlp_policy": {"trunk", "action_head", "value_head"},
    "cnn_policy": {"encoder", "action_head", "value_head"},
    "tiny_vla": {"text_encoder", "stem", "blocks.0", "blocks.1", "action_head", "value_head"},
}


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("param_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model_type", UNITS)
def test_sharded_equals_plain(model_type: str, param_dtype: str) -> None:
    """In float32 exactly, in bf16 within its precision; outputs in float32, the action not rounded."""
    torch.manual_seed(0)
    model = get_model({"model_type": model_type, "num_action_chunks": 3, model_type: {"state_dim": 5}})
    _, result = model.predict_action_batch(OBSERVATION)
    mixed = MixedPrecisionConfig(param_dtype=param_dtype, reduce_dtype="fp32")
    engine = FsdpEngine(
        model,
        FsdpConfig(mixed_precision=mixed),
        OptimConfig(lr=1e-3),
        get_host().model_spec(model_type).wrap_policy,
    )
    assert {unit.name for unit in engine.plan.units} == UNITS[model_type]
    out = engine.model(forward_inputs=result["forward_inputs"])
    assert {tensor.dtype for tensor in out.values()} == {torch.float32}
    # Rounding the recorded actions to bf16 would move log-probabilities by 3 std / 0.37 * 2^-9 * |a| = 0.02.
    atol = 1e-5 if param_dtype == "fp32" else 2e-2
    torch.testing.assert_close(out["logprobs"], result["prev_logprobs"], atol=atol, rtol=0)
    torch.testing.assert_close(out["values"], result["prev_values"], atol=5 * atol, rtol=0)
    engine.backward(out["logprobs"].mean() + out["values"].mean() + out["entropy"].mean())
    assert engine.optimizer_step()["grad_norm"] > 0
    sft = {
        **OBSERVATION,
        "actions": torch.rand(4, 3, 7),
        "action_is_pad": torch.zeros(4, 3, dtype=torch.bool),
    }
    loss = engine.model(forward_type="sft", batch=sft)["loss"]
    engine.backward(loss)
    assert torch.isfinite(loss) and loss.dtype == torch.float32
