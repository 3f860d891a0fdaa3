"""Values that must not be written down: run folders, checkpoints, loggers and messages show none."""

from __future__ import annotations

import re
from typing import Any, Final

#: What stands for a secret.
HIDDEN: Final = "***"
_SECRET: Final = re.compile(
    r"(^|[_-])(api_?key|access_?key|auth_?token|token|secret|password|passwd|credentials?)$", re.IGNORECASE
)
#: What is set by `key=value` or `{key: value}` in the text of an override.
_SET_KEY: Final = re.compile(r"""[\w-]+(?=["']?\s*[:=])""")


def names_secret(key: object) -> bool:
    """Whether a text under this key is hidden."""
    return bool(_SECRET.search(str(key)))


def shown_override(text: str) -> str:
    """`key.path=value` as messages show it: without the value if it sets a secret."""
    if any(map(names_secret, _SET_KEY.findall(text))):
        return f"{text.partition('=')[0]}={HIDDEN}"
    return text


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
        key: HIDDEN if isinstance(value, str) and value and names_secret(key) else redacted(value)
        for key, value in node.items()
    }
