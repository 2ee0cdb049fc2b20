"""Parts by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from lgd.config.schema import Config
from lgd.config.values import ConfigError

Part = TypeVar("Part")


def choose(parts: Mapping[str, Callable[[Config], Part]], name: str, key: str) -> Callable[[Config], Part]:
    """The builder called `name`; raises ConfigError, naming `key`, where there is none."""
    if name not in parts:
        raise ConfigError(f"{key} {name!r} is not available yet; there is {', '.join(sorted(parts))}")
    return parts[name]
