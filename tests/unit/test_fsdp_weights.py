"""Packed weights and safetensors export: what goes in comes out, bit for bit; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rlinf.fsdp.export import export_safetensors, load_safetensors, split_by_size
from rlinf.fsdp.weights import ALIGNMENT, copy_into, pack, unpack
from torch import nn


def odd_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "f32": torch.randn(3, 5, generator=generator),
        "bf16": torch.randn(7, generator=generator).bfloat16(),
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "bool": torch.tensor([True, False, True]),
        "int64": torch.arange(5),
        "uint8": torch.arange(3, dtype=torch.uint8),
        "f16": torch.randn(1, generator=generator).half(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "parameter": nn.Parameter(torch.ones(2)),
    }


def test_pack_and_unpack_keep_every_bit_and_copy_nothing_on_the_way_out() -> None:
    state = odd_state()
    buffer, index = pack(state)
    assert buffer.dtype.name == "uint8" and all(entry[2] % ALIGNMENT == 0 for entry in index.values())
    views = unpack(buffer, json.loads(json.dumps(index)))
    assert list(views) == list(state)
    for name, tensor in state.items():
        assert views[name].dtype == tensor.dtype and views[name].shape == tensor.shape
        assert torch.equal(views[name], tensor), name
    begin, end = buffer.ctypes.data, buffer.ctypes.data + buffer.nbytes
    assert all(begin <= view.data_ptr() < end for view in views.values() if view.numel())


def test_a_read_only_array_unpacks_silently(recwarn: pytest.WarningsRecorder) -> None:
    buffer, index = pack({"a": torch.arange(4)})
    buffer.flags.writeable = False
    assert torch.equal(unpack(buffer, index)["a"], torch.arange(4))
    assert not recwarn.list


def test_an_index_that_does_not_fit_the_buffer_is_refused() -> None:
    buffer, index = pack({"a": torch.zeros(40)})
    with pytest.raises(ValueError, match="a ends at byte 160, but the buffer has 64"):
        unpack(buffer[:64], index)
    with pytest.raises(ValueError, match="a has the unknown dtype 'float33'"):
        unpack(buffer, {"a": ["float33", [40], 0]})


def test_copy_into_a_model() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2).to(torch.bfloat16)
    copy_into(target, {"weight": source.weight})
    assert torch.equal(target.weight, source.weight.bfloat16())
    with pytest.raises(ValueError, match=r"Linear has no tensor named value\.weight \(1 of 2 names"):
        copy_into(target, {"weight": source.weight, "value.weight": source.bias})
    with pytest.raises(ValueError, match=r"bias: \[2\] here, \[3\] sent"):
        copy_into(target, {"bias": torch.zeros(3)})


@pytest.mark.parametrize("max_bytes", [10**9, 64])
def test_export_and_load(tmp_path: Path, max_bytes: int) -> None:
    state = odd_state()
    written = export_safetensors(tmp_path / "out", state, max_bytes)
    assert len(written) == (1 if max_bytes > 10**6 else 1 + len(split_by_size(state, max_bytes)))
    loaded = load_safetensors(tmp_path / "out")
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    with pytest.raises(ValueError, match="already holds"):
        export_safetensors(tmp_path / "out", state)


def test_shards_respect_the_size_and_the_order() -> None:
    state = {name: torch.zeros(n, dtype=torch.uint8) for name, n in [("a", 4), ("b", 4), ("c", 30), ("d", 1)]}
    assert split_by_size(state, 8) == [["a", "b"], ["c"], ["d"]]


def test_tied_weights_are_exported_under_both_names(tmp_path: Path) -> None:
    weight = torch.ones(2, 2)
    export_safetensors(tmp_path, {"embed": weight, "lm_head": weight})
    assert torch.equal(load_safetensors(tmp_path)["lm_head"], weight)


def test_what_is_missing_on_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected model\.safetensors or"):
        load_safetensors(tmp_path)
    written = export_safetensors(tmp_path, odd_state(), 64)
    written[1].unlink()
    with pytest.raises(ValueError, match=f"{written[1].name}.*the file is missing"):
        load_safetensors(tmp_path)
    with pytest.raises(ValueError, match="no tensors"):
        export_safetensors(tmp_path / "none", {})
