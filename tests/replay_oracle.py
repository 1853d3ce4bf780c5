"""The replay buffer, slow and obvious: whole streams in lists, every rule written once."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint16]


@dataclass
class Episode:
    first: int  # step number of its first row
    frames: list[Frame] = field(default_factory=list)  # rows, and the final frame once it is known
    steps: list[list[float | bool]] = field(default_factory=list)  # action reward term trunc life
    over: bool = False


class Oracle:
    def __init__(self, kept: int, envs: int, history: int, n_step: int, gamma: float, same: bool):
        self.kept, self.history, self.n_step, self.gamma = kept, history, n_step, gamma
        self.same = same
        self.episodes: list[list[Episode]] = [[] for _ in range(envs)]
        self.steps = 0
        self.was_cut = False
        self.forgotten = 0  # steps before this one are

    @property
    def oldest(self) -> int:
        return max(0, self.steps - self.kept, self.forgotten)

    def forget(self, before_id: int) -> None:
        self.forgotten = max(self.forgotten, -(-before_id // len(self.episodes)))

    def rewrite(self, row: int, frame: Frame) -> None:
        """Of a stored row: the frame of an episode, its final one included."""
        env, step = row % len(self.episodes), row // len(self.episodes)
        episode = self.episode_of(env, step)
        episode.frames[step - episode.first] = frame

    def add(self, frames, actions, rewards, terminated, truncated, finals, life_lost) -> None:
        for env, episodes in enumerate(self.episodes):
            step = [actions[env], rewards[env], terminated[env], truncated[env], life_lost[env]]
            ended = terminated[env] or truncated[env]
            last = episodes[-1] if episodes else None
            if self.was_cut and last is not None and not last.over:
                last.over = True
                if not self.same and len(last.steps) == len(last.frames):
                    last.steps.pop()  # the newest row is a mere final frame now
                elif self.same:
                    last.steps.pop()
                if last.steps:
                    last.steps[-1][3] = True
            elif last is not None and not last.over and (last.steps[-1][2] or last.steps[-1][3]):
                last.frames.append(frames[env])  # next_step: this row is the final frame
                last.over = True
                continue
            if last is None or last.over:
                episodes.append(Episode(self.steps))
            episodes[-1].frames.append(frames[env])
            episodes[-1].steps.append(step)
            if self.same and ended:
                episodes[-1].frames.append(finals[env])
                episodes[-1].over = True
        self.steps += 1
        self.was_cut = False

    def episode_of(self, env: int, step: int) -> Episode:
        episodes = self.episodes[env]
        return episodes[bisect_right(episodes, step, key=lambda episode: episode.first) - 1]

    def stack(self, episode: Episode, at: int) -> Frame:
        return np.stack([episode.frames[max(0, i)] for i in range(at - self.history + 1, at + 1)])

    def last_step(self, env: int, step: int) -> int | None:
        """Where the return of the row stops, within its episode; None if it can't be drawn."""
        episode = self.episode_of(env, step)
        start = step - episode.first
        if step < self.oldest or start >= len(episode.steps):
            return None
        if episode.first + max(0, start - self.history + 1) < self.oldest:
            return None
        for at in range(start, start + self.n_step):
            if at >= len(episode.steps) or at + 1 >= len(episode.frames):
                return None
            if any(episode.steps[at][2:]):
                break
        return at

    def transition(self, env: int, step: int, sign: bool = False):
        """(state, action, return, discount, next_state), or None if the row can't be drawn."""
        at = self.last_step(env, step)
        if at is None:
            return None
        episode = self.episode_of(env, step)
        start = step - episode.first
        total = 0.0
        for k, (_, reward, *_) in enumerate(episode.steps[start : at + 1]):
            total += self.gamma**k * (np.sign(reward) if sign else reward)
        _, _, terminated, _, life_lost = episode.steps[at]
        discount = 0.0 if terminated or life_lost else self.gamma ** (at - start + 1)
        next_state = self.stack(episode, at + 1)
        return self.stack(episode, start), episode.steps[start][0], total, discount, next_state

    def ids(self) -> list[int]:
        """Of every row that can be drawn."""
        return [
            step * len(self.episodes) + env
            for env in range(len(self.episodes))
            for step in range(self.oldest, self.steps)
            if self.last_step(env, step) is not None
        ]

    def drawable(self) -> dict[int, tuple]:
        """Every row that can be drawn, by id."""
        rows = {}
        for env in range(len(self.episodes)):
            for step in range(self.oldest, self.steps):
                row = self.transition(env, step)
                if row is not None:
                    rows[step * len(self.episodes) + env] = row
        return rows

    def sequence(self, env: int, step: int, length: int):
        """(tokens, action, reward, terminated, mask, life_lost) of the run from the row on."""
        episode = self.episode_of(env, step)
        start = step - episode.first
        tokens = list(self.stack(episode, start))
        columns = []
        for at in range(start, start + length):
            real = at < len(episode.steps) and at + 1 < len(episode.frames)
            tokens.append(episode.frames[at + 1] if real else tokens[-1])
            nothing = [0, 0.0, False, False, False]
            action, reward, terminated, _, life_lost = episode.steps[at] if real else nothing
            columns.append((action, reward, terminated, real, life_lost))
        action, reward, terminated, mask, life_lost = map(np.array, zip(*columns, strict=True))
        return np.stack(tokens), action, reward, terminated, mask, life_lost
