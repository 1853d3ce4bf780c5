"""flashbax (JAX): trajectories of five frames, jitted, on the CPU; it knows no episodes.

A window may cross an episode's end: its user has to mask such samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from replay_stream import ENVS, HISTORY, TOKENS, Step

from rivals import ALPHA, BETA, Draw, Rival


class FlashbaxTrajectories(Rival):
    package = "flashbax"
    mode = "trajectories of 5, jit"
    keeps_final_frame = False
    crosses_episodes = True

    def __init__(self, capacity: int, prioritized: bool) -> None:
        self.prioritized = prioritized
        self.capacity = capacity
        self.key = jax.random.PRNGKey(0)
        buffer = self._functions(32)
        blank = {
            "frames": jnp.zeros(TOKENS, jnp.uint16),
            "action": jnp.zeros((), jnp.int32),
            "reward": jnp.zeros((), jnp.float32),
            "terminated": jnp.zeros((), bool),
        }
        self.state = buffer.init(blank)
        self._add = jax.jit(buffer.add, donate_argnums=0)
        if prioritized:
            self._set_priorities = jax.jit(buffer.set_priorities, donate_argnums=0)

    def _functions(self, batch_size: int) -> Any:
        """The buffer's pure functions: a batch size is compiled in, the state knows none."""
        common = {
            "add_batch_size": ENVS,
            "sample_batch_size": batch_size,
            "sample_sequence_length": HISTORY + 1,
            "period": 1,
            "min_length_time_axis": HISTORY + 1,
            "max_length_time_axis": self.capacity // ENVS,
        }
        if not self.prioritized:
            return flashbax.make_trajectory_buffer(**common)
        return flashbax.make_prioritised_trajectory_buffer(
            **common, priority_exponent=ALPHA, device="cpu"
        )

    def add(self, step: Step) -> None:
        experience = {
            "frames": step.frames[:, None],
            "action": step.actions[:, None].astype(np.int32),
            "reward": step.rewards[:, None],
            "terminated": step.terminated[:, None],
        }
        self.state = self._add(self.state, experience)
        jax.block_until_ready(self.state)

    @partial(jax.jit, static_argnums=(0, 3, 4))
    def _sample(self, state: Any, key: Any, batch_size: int, split: bool) -> Any:
        key, draw_key = jax.random.split(key)
        sample = self._functions(batch_size).sample(state, draw_key)
        frames = sample.experience["frames"]
        fields = {"frames": (frames[:, :-1], frames[:, 1:]) if split else frames}
        for name in ("action", "reward", "terminated"):
            fields[name] = sample.experience[name][:, HISTORY - 1]
        index = ()
        if self.prioritized:
            weight = sample.probabilities**-BETA
            fields["weight"] = weight / weight.max()
            index = sample.indices
        return key, fields, index

    def _draw(self, batch_size: int, split: bool) -> Draw:
        self.key, fields, index = self._sample(self.state, self.key, batch_size, split)
        return Draw(jax.block_until_ready(fields), index)

    def sample(self, batch_size: int) -> Draw:
        return self._draw(batch_size, split=True)

    def window(self, batch_size: int) -> Draw:
        return self._draw(batch_size, split=False)

    def update(self, index: Any, priority: NDArray[np.float32]) -> None:
        self.state = self._set_priorities(self.state, index, priority)
        jax.block_until_ready(self.state)

    def arrays(self, draw: Draw) -> dict[str, NDArray[Any]]:
        fields = {name: np.asarray(draw.batch[name]) for name in draw.batch if name != "frames"}
        frames = draw.batch["frames"]
        if not isinstance(frames, tuple):
            frames = frames[:, :-1], frames[:, 1:]
        fields["state"], fields["next_state"] = (np.asarray(stack) for stack in frames)
        return fields
