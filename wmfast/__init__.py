"""wmfast: the fast discrete-token world-model engine for Atari, and its parts.

``TokenReplay`` needs numpy alone; importing this package does not import torch. ``DreamVectorEnv``
is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wmfast._core import TokenReplay

if TYPE_CHECKING:
    from wmfast.dream_env import DreamVectorEnv

__version__ = "0.1.0"

__all__ = ["DreamVectorEnv", "TokenReplay"]

_LATER = {"DreamVectorEnv": "wmfast.dream_env"}
"""What needs torch, by the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
