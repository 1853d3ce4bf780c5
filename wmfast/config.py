"""Configuration: frozen dataclasses read by tyro.

A field's docstring is its ``--help``; a size that belongs to a preset stands in ``presets.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wmfast.agent_config import AgentConfig as AgentConfig  # it is one of them

Device = Literal["auto", "cpu", "cuda"]
Preset = Literal["auto", "cpu", "v3", "v2", "atari100k", "smoke"]
DREAM_TEMPERATURE = 0.5
"""Of dreams that are looked at or played in.

Token importance makes change likelier than it is: sampled at 1, an MsPacman dream is noise after 15
steps; the likeliest tokens lose the sprites. 50 steps from 32 real starts, `cpu` preset: 12 cells
change a step at 0.5, 14 in the game, 9 at 0, 174 at 1.
"""


@dataclass(frozen=True)
class EnvConfig:
    """The emulator and the protocol that scores depend on."""

    num_envs: int = 8
    """Parallel games; one env step is one action in one of them (4 raw frames)."""
    sticky: float = 0.0
    """Probability that the emulator repeats the last action (0: Atari-100k papers, 0.25: ALE)."""
    noop_max: int = 30
    """Up to this many no-ops begin a game."""
    max_frames: int = 108_000
    """Raw frames after which a game is truncated."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Frames to 21 x 16 tokens and back."""

    kind: Literal["patch", "vqvae"] = "vqvae"
    """patch: k-means codebook of 4x4 patches and a small decoder; vqvae: the seeds' VQ-VAE."""
    codebook_size: int = 512
    """Codes (the vocabulary of every token model)."""
    code_dim: int = 256
    """vqvae: width of a code."""
    channels: int = 64
    """vqvae: width of the first convolution (then x2, x4). patch: width of the decoder."""
    residual_blocks: int = 2
    """Residual blocks at the bottleneck (vqvae) or in the decoder (patch)."""
    ema_decay: float = 0.99
    """vqvae: decay of the codebook's moving averages."""
    commitment: float = 0.25
    """vqvae: weight of the commitment loss."""
    dead_code_threshold: float = 0.01
    """vqvae: a code used less than this fraction of an even share is reset from live outputs."""
    foreground_weight: float = 10.0
    """Extra weight of pixels that differ from the median frame; 0: all pixels count the same."""
    train_steps: int = 5000
    """Training steps before the tokenizer is frozen."""
    batch_size: int = 32
    """Frames a training step."""
    learning_rate: float = 3e-4
    """AdamW learning rate."""


@dataclass(frozen=True)
class WorldModelConfig:
    """Next tokens, reward and end from a token history and an action."""

    kind: Literal["transformer", "conv"] = "transformer"
    """transformer: the seeds' sequence of history, action, queries; conv: over the token grid."""
    d_model: int = 256
    """Model width."""
    heads: int = 4
    """Attention heads (transformer)."""
    layers: int = 4
    """Transformer layers, or residual blocks (conv)."""
    dropout: float = 0.1
    """Dropout rate (transformer)."""
    tubelet: tuple[int, int, int] = (1, 1, 1)
    """Tokens (time, height, width) merged into one position; (1, 1, 1) is the seeds' sequence."""
    copy_gate: bool = False
    """Mix "copy the last token" with the predicted distribution by a learned gate."""
    reward_done_heads: bool = True
    """Predict reward and end too (v3); off in v2.1."""
    life_head: bool = False
    """With `reward_done_heads`: predict lost lives too; returns stop there, also those of Dyna."""
    done_weight: float = 20.0
    """Weight of the rare positives of the done head."""
    batch_size: int = 16
    """Segments a training step."""
    learning_rate: float = 5e-4
    """AdamW learning rate."""
    warmup_updates: int = 50
    """Updates over which the learning rate rises linearly from zero."""
    decay_share: float = 0.0
    """Last share of the run's updates over which the learning rate falls to a twentieth."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    every: int = 100
    """Env steps for one training step."""
    recent_steps: int = 50_000
    """Length of the recency window, in env steps."""
    recent_fraction: float = 0.5
    """Fraction of the batch drawn from the recency window."""
    rollout_steps: int = 1
    """Steps of a rollout on the model's own predictions; 1: every update is one-step."""
    rollout_share: float = 0.5
    """Share of the updates that are rollouts (with `rollout_steps` above 1)."""
    rollout_start: float = 0.0
    """Share of the run's updates that come before the first rollout."""
    rollout_batch_size: int = 16
    """Segments a rollout update."""
    teacher_forcing: float = 0.1
    """Probability that a rollout goes on from the real frame in place of the predicted one."""
    step_discount: float = 0.7
    """Weight of a rollout's step over that of the step before."""
    motion_weight: float = 0.0
    """Token importance: scale of motion (distance between a cell's codes); 0: off."""
    eventness_weight: float = 0.0
    """Token importance: scale of motion above its running level; 0: off."""
    persistence_weight: float = 0.0
    """Token importance: scale of motion in every frame of the history; 0: off."""
    importance_cap: float = 6.0
    """Largest token weight, in medians."""


@dataclass(frozen=True)
class DynaConfig:
    """Imagined transitions in the agent's batches, as far as the world model is trusted."""

    share: float = 0.0
    """Share of the agent's batches that is imagined; 0: off (the seed: 0.05)."""
    start: float = 0.25
    """Share of the run's env steps, warm-up included, before the first dream."""
    every: int = 1_000
    """Env steps between dreams."""
    seeds: int = 256
    """Real histories that dreams begin in."""
    horizon: int = 3
    """Imagined steps of a dream."""
    temperature: float = 0.0
    """Of the imagined tokens; 0: the likeliest."""
    top_k: int = 0
    """Sample among the so many likeliest tokens of a cell; 0: among all."""
    trust_scale: float = 1.0
    """Trust is exp(-scale * the world model's loss on a seed, nats a token)."""
    trust_threshold: float = 0.3
    """Seeds that are trusted less are dropped."""
    trust_decay: float = 0.95
    """Trust in a transition for each imagined step that it rests on."""


@dataclass(frozen=True)
class ContinualConfig:
    """Mode full: the tokenizer goes on learning, and what it has encoded is kept up with it."""

    window_frames: int = 100_000
    """Newest frames kept as pixels (compressed); older tokens can't be encoded again."""
    tokenizer_every: int = 5_000
    """Env steps between trainings of the tokenizer."""
    tokenizer_updates: int = 200
    """Updates a training."""
    learning_rate: float = 3e-5
    """AdamW learning rate."""
    ema_decay: float = 0.999
    """Decay of the moving averages that the codes follow."""
    rehearsal_fraction: float = 0.5
    """Share of a batch that is drawn from rehearsal frames, evenly over the codes."""
    frames_per_code: int = 100
    """Rehearsal frames kept for a code; a frame is filed under the rarest code in it."""
    reseed_codes: int = 16
    """Codes at most that a training may move onto what fits worst; 0: none."""
    sample_frames: int = 128
    """Frames that decide about such moves."""
    bank_frames: int = 256
    """Held-out frames of the warm-up, and of later play, on which the tokens' drift is measured."""
    drift_bound: float = 0.05
    """Rows without pixels are dropped once this share of the tokens, or of the moving ones, of the
    held-out frames played about when the rows were has changed."""


@dataclass(frozen=True)
class LoopConfig:
    """How often each part of the loop runs, in env steps."""

    mode: Literal["staged", "frozen", "full"] = "frozen"
    """frozen: tokenizer frozen after the warm-up, world model and agent continue; full: all three
    continue; staged: tokenizer, then world model, then agent."""
    warmup_steps: int = 10_000
    """Random env steps before any training."""
    replay_capacity: int = 1_000_000
    """Env steps kept in the replay buffer."""
    eval_every: int = 50_000
    """Env steps between evaluations; the last step is always evaluated."""
    eval_episodes: int = 10
    """Full greedy games an evaluation, all at once."""
    checkpoint_every: int = 20_000
    """Env steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_every: int = 2_000
    """Env steps between rows of metrics."""


@dataclass(frozen=True)
class Config:
    """Train a discrete-token world model and an agent on one Atari game."""

    game: str = "mspacman"
    """Any of the 104 games, blind to case, `_`, `-` and `ALE/...-v5`."""
    preset: Preset = "auto"
    """Sizes and rates: auto is cpu without a GPU and v3 with one."""
    steps: int = 1_000_000
    """Env steps of the run, warm-up included."""
    seed: int = 0
    """Seed of every random stream."""
    device: Device = "auto"
    """Where the networks run."""
    run_dir: Path | None = None
    """Run folder; `runs/<game>/<preset>-s<seed>-<utc>` unless given."""
    resume: bool = False
    """Go on from the latest checkpoint of `--run-dir` (or of the newest matching run)."""
    vqvae: Path | None = None
    """Tokenizer weights (safetensors) in place of training one."""
    wm: Path | None = None
    """World-model weights (safetensors) to start from."""
    env: EnvConfig = field(default_factory=EnvConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    dyna: DynaConfig = field(default_factory=DynaConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
