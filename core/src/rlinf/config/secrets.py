"""Values that must not be written down: configurations in run folders, checkpoints and loggers show none."""

from __future__ import annotations

import re
from typing import Any, Final

#: What stands for a secret.
HIDDEN: Final = "***"
_SECRET: Final = re.compile(
    r"(^|[_-])(api_?key|access_?key|auth_?token|token|secret|password|passwd|credentials?)$", re.IGNORECASE
)


def redacted(node: Any) -> Any:
    """A copy of nested plain values in which every text under a key that names a secret is hidden.

    By key: `token`, `hf_token`, `api_key`, `wandb_api_key`, `client_secret`, `db-password`; not `tokens` or
    `tokenizer`. Numbers and switches stay.
    """
    if isinstance(node, list):
        return [redacted(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: HIDDEN if isinstance(value, str) and value and _SECRET.search(str(key)) else redacted(value)
        for key, value in node.items()
    }
