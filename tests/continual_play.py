"""A tokenizer that goes on learning, on films of random play: what its tests begin with."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from wmfast import TokenReplay
from wmfast.collect import collect_random
from wmfast.config import Config, ContinualConfig, EnvConfig, TokenizerConfig
from wmfast.continual import ContinualTokenizer
from wmfast.envs import AtariEnvs
from wmfast.fit import fit_tokenizer
from wmfast.models.tokenizer import Tokenizer, build_tokenizer

ENVS, STEPS = 4, 100
KINDS = {
    "patch": TokenizerConfig(
        kind="patch", codebook_size=192, channels=16, residual_blocks=1, train_steps=60,
        learning_rate=6e-3, batch_size=16,
    ),
    "vqvae": TokenizerConfig(
        kind="vqvae", codebook_size=128, code_dim=16, channels=8, residual_blocks=1,
        train_steps=120, learning_rate=2e-3, batch_size=4,
    ),
}  # fmt: skip
RATES = {"patch": 2e-3, "vqvae": 1e-3}
Frames = NDArray[np.uint8]


@cache
def film(game: str) -> Frames:
    """Random play, uint8 (STEPS, ENVS, 84, 64, 3)."""
    with AtariEnvs(game, EnvConfig(num_envs=ENVS), seed=3) as envs:
        rng = np.random.default_rng(3)
        return np.stack([raw.frames for raw in collect_random(envs, STEPS * ENVS, rng)])


def play(continual: ContinualTokenizer, replay: TokenReplay, tokenizer: Tokenizer, frames) -> None:
    """Store the steps (T, E, 84, 64, 3): pixels in the window, tokens in the replay."""
    nothing = np.zeros(ENVS, bool)
    for step in frames:
        continual.window.push(int(replay.stats()["added"]), step)
        tokens = tokenizer.encode(torch.from_numpy(step)).numpy().astype(np.uint16)
        replay.add(tokens, [0] * ENVS, [0.0] * ENVS, nothing, nothing)


@cache
def fitted(kind: str, steps: int) -> dict[str, torch.Tensor]:
    """The weights of a tokenizer of so much Breakout that has not seen the last env."""
    torch.manual_seed(0)
    config = KINDS[kind]
    tokenizer = build_tokenizer(config)
    seen = film("breakout")[:steps, :-1].reshape(-1, 84, 64, 3)
    fit_tokenizer(tokenizer, seen, config, seed=0, device=torch.device("cpu"))
    return tokenizer.state_dict()


def started(
    kind: str = "patch", steps: int = STEPS, **options: object
) -> tuple[ContinualTokenizer, TokenReplay, Tokenizer]:
    """A tokenizer of Breakout, at the end of its warm-up."""
    tokenizer = build_tokenizer(KINDS[kind]).eval()
    tokenizer.load_state_dict(fitted(kind, steps))
    continual_config = ContinualConfig(
        **{
            "window_frames": 2 * ENVS * STEPS,
            "tokenizer_updates": 12,
            "learning_rate": RATES[kind],
            "ema_decay": 0.97,
            "frames_per_code": 8,
            "sample_frames": 32,
            "bank_frames": 40,
            **options,
        }
    )
    config = Config(env=EnvConfig(num_envs=ENVS), tokenizer=KINDS[kind], continual=continual_config)
    replay = TokenReplay(20 * ENVS * STEPS, ENVS, vocab_size=KINDS[kind].codebook_size, n_step=3)
    continual = ContinualTokenizer(config, tokenizer, replay, autocast=False)
    play(continual, replay, tokenizer, film("breakout")[:steps])
    continual.begin(film("breakout")[:steps, -1])
    return continual, replay, tokenizer
