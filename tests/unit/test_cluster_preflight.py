"""What a node may and may not have otherwise than the driver, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
from rlinf.cluster import preflight as module
from rlinf.cluster.errors import UserError
from rlinf.cluster.preflight import compare, refusal, require_disk

FACTS: dict[str, Any] = {
    "versions": {"python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"},
    "rows": [],
    "processors": "",
    "gpus": ["H100, 80 GB, driver 550"],
    "torch_cuda": "13.0",
    "shm_free": 10**9,
    "disk_free": 10**12,
    "folder": {"config.yaml": "a", "metadata.json": "b"},
}


def differences(
    skew_s: float = 0.0, ray_gpus: int = 1, writes: bool = True, **changes: Any
) -> list[tuple[str, str]]:
    found = compare("node 1 (10.0.0.1)", FACTS, {**FACTS, **changes}, skew_s, ray_gpus, writes)
    return [(row.what, row.here) for row in found]


def test_an_equal_node_is_fine() -> None:
    assert differences() == []
    # Less hardware is no fault where it is not used, nor is another folder where nobody writes.
    assert differences(ray_gpus=0, writes=False, torch_cuda="", folder={}, disk_free=0) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"versions": {**FACTS["versions"], "torch": "2.12.1"}}, ("torch", "2.12.1")),
        ({"versions": {"python": "3.11.7", "ray": "2.60.0"}}, ("torch", "absent")),
        ({"rows": [("rlinf.models x version", "1", "2")]}, ("rlinf.models x version", "2")),
        ({"processors": "plugin:flip"}, ("action processors", "plugin:flip")),
        ({"torch_cuda": ""}, ("torch", "built without CUDA")),
        ({"gpus": []}, ("GPU driver", "nvidia-smi shows none")),
        ({"shm_free": 2**20}, ("/dev/shm free", "1 MB")),
        ({"folder": {"config.yaml": "other"}}, ("run folder", "another folder there")),
        ({"disk_free": 3 * 2**20}, ("disk free, run folder", "3 MB")),
        ({"skew_s": -61.04}, ("clock", "-61.0 s")),
    ],
)
def test_what_is_wrong_with_a_node(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    assert differences(**changes) == [expected]


def test_the_table_has_the_differences_first() -> None:
    found = compare(
        "node 1 (h)", FACTS, {**FACTS, "versions": {**FACTS["versions"], "torch": "2"}}, 0, 1, True
    )
    found += compare("node 3 (i)", FACTS, "ImportError: no module named rlinf, not there", 0, 1, True)
    lines = refusal(found, 4, FACTS).splitlines()
    assert lines[0] == "preflight: 2 of 4 nodes cannot take part; nothing was started."
    assert lines[2].split() == ["torch", "2.13.0", "2", "node", "1", "(h)"]
    assert lines[4] == "alike everywhere: python 3.11.7, ray 2.60.0"
    assert lines[-1] == "  ImportError: no module named rlinf, not there"
    assert all(len(line) <= 80 for line in lines[1:4])


def test_a_disk_without_room_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require_disk(tmp_path / "new" / "run")
    monkeypatch.setattr(module, "LEAST_DISK", 1 << 60)
    with pytest.raises(UserError, match=r"runner.output_dir: \d+ MB are free"):
        require_disk(tmp_path)
