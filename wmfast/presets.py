"""The presets: sizes and rates of whole runs, by name."""

from __future__ import annotations

from wmfast.config import (
    AgentConfig,
    Config,
    ContinualConfig,
    DynaConfig,
    EnvConfig,
    LoopConfig,
    TokenizerConfig,
    WorldModelConfig,
)

_CPU_TOKENIZER = TokenizerConfig(
    kind="patch", channels=32, residual_blocks=1, train_steps=300, learning_rate=6e-3
)
_CPU_WORLD_MODEL = WorldModelConfig(
    kind="conv",
    d_model=64,
    layers=2,
    copy_gate=True,
    life_head=True,
    batch_size=32,
    learning_rate=5e-3,
    decay_share=0.25,
    every=24,  # what the second core has time for beside the agent's updates
    rollout_steps=5,
    rollout_start=0.5,  # from the start on, rollouts only cost: they learn from a blind model
    motion_weight=2.0,
    eventness_weight=2.0,
    persistence_weight=1.0,
)

PRESETS: dict[str, Config] = {
    # What learns in minutes on two cores.
    "cpu": Config(
        preset="cpu",
        steps=80_000,
        tokenizer=_CPU_TOKENIZER,
        world_model=_CPU_WORLD_MODEL,
        agent=AgentConfig(
            kind="conv",
            d_model=32,
            n_step=3,
            tau=0.005,
            learning_rate=3e-4,
            epsilon_share=0.25,
            every=2,
        ),
        continual=ContinualConfig(
            window_frames=30_000,
            tokenizer_updates=30,
            learning_rate=1e-3,
            frames_per_code=20,
        ),
        loop=LoopConfig(warmup_steps=10_000, replay_capacity=200_000, eval_every=40_000),
    ),
    # The first seed to the letter: 512 codes, 4 layers, 1344 and 1681 positions.
    "v3": Config(
        preset="v3",
        tokenizer=TokenizerConfig(kind="vqvae"),
        dyna=DynaConfig(share=0.05, start=0.0),
    ),
    # The second seed: 32 codes, 10 layers of 8 heads, next tokens only, half of it in rollouts.
    "v2": Config(
        preset="v2",
        tokenizer=TokenizerConfig(kind="vqvae", codebook_size=32),
        world_model=WorldModelConfig(
            heads=8,
            layers=10,
            reward_done_heads=False,
            batch_size=8,
            rollout_steps=5,
            rollout_batch_size=8,
            motion_weight=2.0,
            eventness_weight=2.0,
            persistence_weight=1.0,
        ),
    ),
    # The fast architecture for 100k env steps on one GPU.
    "atari100k": Config(
        preset="atari100k",
        steps=100_000,
        tokenizer=TokenizerConfig(kind="patch", channels=64, residual_blocks=4, train_steps=3000),
        world_model=WorldModelConfig(
            tubelet=(4, 2, 2), copy_gate=True, life_head=True, batch_size=32, every=16
        ),
        # Schedules, resets and optimiser of BBF (Schwarzer et al. 2023, its BBF.gin) unless said
        # otherwise; network, warm-up and exponents of the priorities are this project's own, and
        # there is no self-predictive loss.
        agent=AgentConfig(
            tubelet=(4, 2, 2),
            n_step=3,
            n_step_start=10,
            gamma=0.997,
            gamma_start=0.97,
            anneal_updates=10_000,
            tau=0.005,
            act_with_target=True,
            epsilon_steps=2_000,
            epsilon_end=0.0,
            batch_size=32,
            every=1,
            updates=2,
            reset_every=20_000,
            reset_until=0.5,  # 100k of its 200k updates
            reset_keep=0.5,
            value_head="hl_gauss",  # better than its c51 on Atari: Farebrother et al. 2024
            bins=51,
            value_range=10.0,
            shift=1,  # its 4 pixels (DrQ: Yarats et al. 2021) are a cell
            adam_epsilon=1.5e-4,  # that of DER (van Hasselt et al. 2019)
            weight_decay=0.1,
        ),
        loop=LoopConfig(warmup_steps=4_000, eval_every=25_000),
    ),
    # Everything, tiny, in seconds: for tests.
    "smoke": Config(
        preset="smoke",
        steps=600,
        env=EnvConfig(num_envs=4, max_frames=1_200),
        tokenizer=TokenizerConfig(
            kind="patch", codebook_size=64, channels=8, residual_blocks=1, train_steps=10
        ),
        world_model=WorldModelConfig(
            kind="conv",
            d_model=16,
            layers=1,
            copy_gate=True,
            life_head=True,
            batch_size=4,
            every=40,
            rollout_steps=3,
            rollout_batch_size=4,
            motion_weight=0.5,
            eventness_weight=0.5,
            persistence_weight=0.25,
        ),
        agent=AgentConfig(
            kind="conv",
            d_model=8,
            n_step=3,
            epsilon_share=0.3,
            batch_size=8,
            every=8,
            curiosity=0.1,
        ),
        continual=ContinualConfig(
            window_frames=240,
            tokenizer_every=100,
            tokenizer_updates=2,
            learning_rate=1e-3,
            frames_per_code=4,
            sample_frames=16,
            bank_frames=16,
        ),
        dyna=DynaConfig(share=0.125, start=0.4, every=100, seeds=16, trust_threshold=0.0),
        loop=LoopConfig(
            warmup_steps=200,
            replay_capacity=2_000,
            eval_every=400,
            eval_episodes=2,
            checkpoint_every=200,
            log_every=100,
        ),
    ),
}
"""By name; ``auto`` is resolved to ``cpu`` or ``v3`` by whoever knows the device."""
