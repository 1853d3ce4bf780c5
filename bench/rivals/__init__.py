"""Replay buffers behind one interface, each in its best mode; one file a library.

``make bench-replay`` installs them (requirements.txt); without them the numpy rings remain.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from replay_stream import Step

ALPHA, BETA, GAMMA = 0.6, 0.4, 0.99


class Draw(NamedTuple):
    """A batch as the buffer gave it; ``Rival.arrays`` makes comparable arrays of it."""

    batch: Any
    index: Any


class Rival(ABC):
    """A buffer for 8 envs that gives state and next_state (B, 4, 336).

    Only what a user would have to write is in the timed methods ``add``, ``sample``, ``window`` and
    ``update``.
    """

    package: ClassVar[str] = ""  # what pip calls it; empty: nothing to install
    mode: ClassVar[str]  # how it is used
    modes: ClassVar[tuple[bool, ...]] = (False, True)  # prioritized or not
    stacks: ClassVar[bool] = False  # wants ready-made histories
    keeps_final_frame: ClassVar[bool] = True  # next_state of a truncated step is right
    crosses_episodes: ClassVar[bool] = False  # histories may begin in the episode before
    even_enough: ClassVar[float] = 6.0  # standard deviations that 32 bands of draws may be off
    why_not_prioritized: ClassVar[str] = ""

    @abstractmethod
    def __init__(self, capacity: int, prioritized: bool) -> None: ...

    @abstractmethod
    def add(self, step: Step) -> object: ...

    @abstractmethod
    def sample(self, batch_size: int) -> Draw: ...

    def window(self, batch_size: int) -> Draw:
        """State and next_state in the fastest way there is."""
        return self.sample(batch_size)

    def update(self, index: Any, priority: NDArray[np.float32]) -> object:
        raise NotImplementedError

    @abstractmethod
    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        """state, next_state, action, reward, terminated and, if prioritized, weight. Untimed."""


# Class of each rival; a module is imported when its rival is asked for.
RIVALS = {
    "numpy": "numpy_rings:NumpyRings",
    "cpprb": "cpprb_stacks:CpprbStacks",
    "cpprb_compressed": "cpprb_compressed:CpprbCompressed",
    "tianshou": "tianshou_vector:TianshouVector",
    "sb3": "sb3_stacks:Sb3Stacks",
    "torchrl": "torchrl_stacks:TorchrlStacks",
    "flashbax": "flashbax_trajectories:FlashbaxTrajectories",
}


class MissingRival(Exception):
    """The rival's library can't be used here; the text says why."""


def load(name: str) -> type[Rival]:
    module, _, class_name = RIVALS[name].partition(":")
    try:
        rival: type[Rival] = getattr(importlib.import_module(f"rivals.{module}"), class_name)
    except ImportError as error:
        raise MissingRival(f"{name}: {error} (make bench-replay installs it)") from error
    return rival
