"""Our side: wmfast.TokenReplay behind the rivals' interface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from replay_stream import ENVS, HISTORY, TOKENS, VOCAB, Step

from rivals import ALPHA, BETA, GAMMA, Draw, Rival
from wmfast import TokenReplay


class WmfastReplay(Rival):
    package = "wmfast"
    mode = "TokenReplay"

    def __init__(self, capacity: int, prioritized: bool) -> None:
        self.replay = TokenReplay(
            capacity,
            ENVS,
            frame_shape=(TOKENS,),
            vocab_size=VOCAB,
            history=HISTORY,
            gamma=GAMMA,
            alpha=ALPHA,
            prioritized=prioritized,
            autoreset="same_step",
        )

    def add(self, step: Step) -> object:
        return self.replay.add(
            step.frames,
            step.actions,
            step.rewards,
            step.terminated,
            step.truncated,
            final_frames=step.final_frames,
        )

    def sample(self, batch_size: int) -> Draw:
        batch = self.replay.sample(batch_size, beta=BETA)
        return Draw(batch, batch.index)

    def window(self, batch_size: int) -> Draw:
        batch = self.replay.sample(batch_size, beta=BETA, window=True)
        return Draw(batch, batch.index)

    def update(self, index: NDArray[np.int64], priority: NDArray[np.float32]) -> object:
        return self.replay.update_priorities(index, priority)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        names = ("state", "next_state", "action", "reward", "weight")
        arrays = {name: draw.batch[name] for name in names}
        return arrays | {"terminated": draw.batch.discount == 0}
