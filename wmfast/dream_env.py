"""A trained world model as a Gymnasium environment: any agent can train inside the dream.

An episode begins in a real history and goes on in the model's own predictions.

    dreams = wmfast.DreamVectorEnv.from_run("runs/ms_pacman/...", num_envs=8)
    frames, _ = dreams.reset(seed=0)  # uint8 (8, 84, 64, 3)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from wmfast.config import DREAM_TEMPERATURE, Device
from wmfast.dream_games import DreamGames, DreamParts, Rewards, dream_parts
from wmfast.models.prediction import WorldModel
from wmfast.models.tokenizer import Tokenizer
from wmfast.types import FRAME_HW, HISTORY, TOKENS_PER_FRAME

Observations = Literal["rgb", "tokens"]
Autoreset = Literal["next_step", "same_step", "disabled"]
Array = NDArray[Any]
Bools = NDArray[np.bool_]

FPS = 15  # 60 frames a second, one step in four


class DreamVectorEnv(VectorEnv[Array, Array, Array]):
    """Imagined games, one a row, all in one forward pass a step.

    ``step`` returns observations; rewards float64 (E,) in game points; terminated bool (E,), by the
    world model's done head; truncated bool (E,), after `horizon` steps. ``info`` holds
    ``done_probability`` (E,), what the done head said of this step, and where an episode ended
    under ``same_step`` also ``final_obs`` and ``final_info``, as Gymnasium's own vector envs give
    them (with the masks ``_final_obs`` and so on).

    All luck comes from the seed of ``reset``: the same seed and actions give the same dreams (on a
    CPU to the digit, with as many threads), and one env's luck does not depend on another's end.

    Args:
        world_model: with reward and done heads; in eval mode for each step.
        tokenizer: shows its tokens; both on one device, which is where dreams are dreamed.
        starts: real histories, integers (N, 4, 336), oldest frame first; a reset draws one evenly.
        num_envs: E.
        num_actions: of the game (its minimal action set).
        observations: ``rgb``: decoded frames uint8 (84, 64, 3), as the emulator gives them;
            ``tokens``: histories uint16 (4, 336), as wmfast's agents see them.
        horizon: steps after which a dream is truncated.
        temperature: of the tokens: 1 samples from the model's own distribution (which token
            importance makes restless), 0 takes the likeliest one (moving things vanish then).
        top_k: sample among the so many likeliest tokens of a cell; None: among all.
        rewards: ``sampled``: the sign drawn from the reward head, times its magnitude: as rare
            and as large as in the game; ``expected``: its mean, with less noise, seldom zero;
            ``likeliest``: the likeliest sign, which is zero as long as rewards are rare.
        done_threshold: None draws the end with the done head's (calibrated) probability; a number
            ends a dream where that probability is larger.
        autoreset_mode: Gymnasium's: what happens after an end. ``disabled``: the caller resets,
            with ``reset(options={"reset_mask": ended})``.
        render_mode: ``rgb_array`` or None.

    Raises:
        ValueError: an argument, with what is allowed.
    """

    def __init__(
        self,
        world_model: WorldModel,
        tokenizer: Tokenizer,
        starts: Array,
        num_envs: int = 1,
        *,
        num_actions: int,
        observations: Observations = "rgb",
        horizon: int = 20,
        temperature: float = DREAM_TEMPERATURE,
        top_k: int | None = None,
        rewards: Rewards = "sampled",
        done_threshold: float | None = None,
        autoreset_mode: Autoreset | AutoresetMode = "next_step",
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(autoreset_mode, AutoresetMode):
            _check_choice("autoreset_mode", autoreset_mode, get_args(Autoreset))
            autoreset_mode = AutoresetMode[autoreset_mode.upper()]
        _check_choice("observations", observations, get_args(Observations))
        _check_choice("rewards", rewards, get_args(Rewards))
        _check_choice("render_mode", render_mode, (None, "rgb_array"))
        for name, value in (("num_envs", num_envs), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature = {temperature}: must be 0 (likeliest) or above")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k = {top_k}: must be at least 1, or None")
        if done_threshold is not None and not 0 <= done_threshold <= 1:
            raise ValueError(f"done_threshold = {done_threshold}: must be 0 to 1, or None")
        parts = DreamParts(world_model, tokenizer, starts, num_actions)
        self._games = DreamGames(
            parts, num_envs, temperature=temperature, top_k=top_k, rewards=rewards
        )
        self._observations = observations
        self._horizon = horizon
        self._done_threshold = done_threshold
        self._mode = autoreset_mode
        self._num_actions = num_actions
        self._begun = False
        self._ended = np.zeros(num_envs, np.bool_)
        self._length = np.zeros(num_envs, np.int64)

        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {
            "autoreset_mode": autoreset_mode,
            "render_modes": ["rgb_array"],
            "render_fps": FPS,
        }
        self.single_action_space = Discrete(num_actions)
        if observations == "rgb":
            self.single_observation_space = Box(0, 255, (*FRAME_HW, 3), np.uint8)
        else:
            shape = (HISTORY, TOKENS_PER_FRAME)
            self.single_observation_space = Box(0, tokenizer.vocab_size - 1, shape, np.uint16)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    @classmethod
    def from_run(
        cls,
        run: Path | str,
        num_envs: int = 1,
        *,
        starts: int = 4096,
        device: Device = "cpu",
        **options: Any,
    ) -> DreamVectorEnv:
        """The dreams of a run (ended: of its kept world model), begun where its replay has been.

        Args:
            run: the run folder.
            num_envs: E.
            starts: how many histories are drawn from the replay to begin in.
            device: where to dream.
            **options: `observations`, `horizon` and the other keywords of the class.

        Raises:
            UserError: no run or no whole checkpoint is there, its world model is untrained or has
                no reward and done heads.
            ValueError: an argument, with what is allowed.
        """
        parts = dream_parts(Path(run), starts=starts, device=device)
        return cls(
            parts.world_model,
            parts.tokenizer,
            parts.starts,
            num_envs,
            num_actions=parts.num_actions,
            **options,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin a dream in every env, or in those of ``options["reset_mask"]`` (bool (E,)).

        Returns:
            Observations and an empty info.
        """
        rows = self._reset_rows(options)
        super().reset(seed=seed)
        if seed is not None or not self._begun:
            self._games.seed(self.np_random)
        self._begun = True
        self._games.begin(rows)
        self._ended = self._ended & ~rows
        self._length = np.where(rows, 0, self._length)
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One imagined step of every env.

        Args:
            actions: integers (E,); those of envs that ``next_step`` resets are ignored.

        Raises:
            ValueError: the actions have another shape or type or are out of range.
            gymnasium.error.ResetNeeded: before the first reset, or after an end under ``disabled``.
        """
        if not self._begun:
            raise ResetNeeded("call reset() before the first step()")
        if self._mode is AutoresetMode.DISABLED and self._ended.any():
            names = ", ".join(map(str, np.flatnonzero(self._ended)))
            raise ResetNeeded(f"envs {names} have ended: reset them with options['reset_mask']")
        rewards, done, luck = self._games.step(self._checked(actions))

        begins = self._ended  # under next_step: for them this step is a reset
        self._length = np.where(begins, 0, self._length + 1)
        limit = luck if self._done_threshold is None else self._done_threshold
        terminated = (done > limit) & ~begins
        truncated = (self._length >= self._horizon) & ~terminated
        ended = terminated | truncated
        rewards = np.where(begins, 0.0, rewards)
        if self._mode is AutoresetMode.SAME_STEP:
            infos = _infos(done, ~ended)
            if ended.any():
                infos |= _final_infos(self._observe(ended), done, ended)
            self._games.begin(ended)
            self._length = np.where(ended, 0, self._length)
        else:
            infos = _infos(done, ~begins)
            self._games.begin(begins)
            self._ended = ended
        return self._observe(), rewards, terminated, truncated, infos

    def render(self) -> tuple[Array, ...] | None:
        """The envs' newest frames uint8 (84, 64, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._begun:
            raise ResetNeeded("call reset() before render()")
        return tuple(self._games.frames())

    def _observe(self, rows: Bools | None = None) -> Array:
        if self._observations == "tokens":
            return self._games.histories(rows)
        return self._games.frames(rows)

    def _checked(self, actions: Array) -> NDArray[np.int64]:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"actions are {array.dtype} {array.shape}: must be integers ({self.num_envs},)"
            )
        most = self._num_actions - 1
        if array.min() < 0 or array.max() > most:
            raise ValueError(f"actions are {array.tolist()}: must be 0 to {most}")
        return array.astype(np.int64)

    def _reset_rows(self, options: dict[str, Any] | None) -> Bools:
        if not options or "reset_mask" not in options:
            return np.ones(self.num_envs, np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] = {mask!r}: must be a numpy array of bool")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"options['reset_mask'] = {mask}: must be ({self.num_envs},) with one env or more"
            )
        if not self._begun and not mask.all():
            raise ResetNeeded("the first reset() is of every env: leave out options['reset_mask']")
        return mask


def _infos(done: Array, mask: Bools) -> dict[str, Any]:
    return {"done_probability": np.where(mask, done, 0.0), "_done_probability": mask.copy()}


def _final_infos(final: Array, done: Array, ended: Bools) -> dict[str, Any]:
    """What Gymnasium's vector envs say of episodes that end under ``same_step``."""
    final_obs = np.full(len(ended), None, object)
    for row, observation in zip(np.flatnonzero(ended), final, strict=True):
        final_obs[row] = observation
    return {
        "final_obs": final_obs,
        "_final_obs": ended.copy(),
        "final_info": _infos(done, ended),
        "_final_info": ended.copy(),
    }


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be {' or '.join(map(repr, allowed))}")
