"""Dumps that older versions of this program wrote, brought to the types and fields of today."""

from collections.abc import Callable
from typing import Any

Rule = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a dumped value of one type, its members upgraded already, and returns it as it is dumped today.

It must leave a value of today as it is.
"""


def _data_config(members: dict[str, Any]) -> dict[str, Any]:
    """TFDS was the only source, and its fields were those of `DataConfig` itself."""
    if "source" in members:
        return members
    moved = {name: members[name] for name in ("name", "dir") if name in members}
    return {name: value for name, value in members.items() if name not in moved} | {"source": {"type": "TFDS"} | moved}


RULES: dict[str, Rule] = {"DataConfig": _data_config}
"""By the name that an older version wrote under "type"."""


def upgraded(data: Any) -> Any:
    """A dump (`umd_eqx.dump.dump`) of any version as one of today. A reader's own types are left as they are."""
    if isinstance(data, list):
        return [upgraded(item) for item in data]
    if not isinstance(data, dict):
        return data
    members = {name: upgraded(item) for name, item in data.items()}
    rule = RULES.get(members["type"]) if isinstance(members.get("type"), str) else None
    return members if rule is None else rule(members)
