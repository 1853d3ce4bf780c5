"""Mode full: old looks survive with rehearsal, tokens keep up with the tokenizer, runs go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from wmfast import TokenReplay
from wmfast.build import Parts, build
from wmfast.checks import check
from wmfast.cli import main_train
from wmfast.collect import collect_random
from wmfast.config import Config, ContinualConfig, EnvConfig, TokenizerConfig
from wmfast.continual import ContinualTokenizer
from wmfast.envs import AtariEnvs
from wmfast.errors import UserError
from wmfast.fit import fit_tokenizer
from wmfast.gold_bank import codes_checksum, open_bank
from wmfast.metrics import MetricsLog, read_metrics
from wmfast.model_file import read_meta, read_model
from wmfast.models.tokenizer import Tokenizer, build_tokenizer, tokenizer_quality
from wmfast.presets import PRESETS
from wmfast.progress import Reporter
from wmfast.resume import restore, save
from wmfast.rundir import RunDir, create_run
from wmfast.train import collect, dream, loop, train_agent, train_tokenizer, train_world_model
from wmfast.warmup import prepare

_SMOKE = PRESETS["smoke"]
SMOKE = replace(_SMOKE, game="breakout", device="cpu", loop=replace(_SMOKE.loop, mode="full"))
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


def other_game(
    kind: str, rehearsed: float, trainings: int = 5, steps: int = STEPS, **options: object
) -> dict[str, float]:
    """Breakout, then MsPacman for so long that no Breakout frame is left in the window."""
    held_out = torch.from_numpy(film("breakout")[:steps:3, -1].copy())
    new = torch.from_numpy(film("mspacman")[:steps:10, 0].copy())
    continual, replay, tokenizer = started(
        kind, steps, window_frames=ENVS * steps, rehearsal_fraction=rehearsed, **options
    )
    old_psnr, new_psnr = (tokenizer_quality(tokenizer, f)["psnr"] for f in (held_out, new))
    play(continual, replay, tokenizer, film("mspacman")[:steps])
    for _ in range(trainings):
        metrics = continual.train()
    return {
        "old_fall": old_psnr - tokenizer_quality(tokenizer, held_out)["psnr"],
        "new_gain": tokenizer_quality(tokenizer, new)["psnr"] - new_psnr,
        "retention": metrics["drift/retention_since_start"],
        "moving": metrics["drift/retention_moving_since_start"],
    }


def test_old_codes_survive_another_game_with_rehearsal_and_not_without() -> None:
    """Measured: PSNR of Breakout -5 dB with rehearsal, -18 without; its moving cells keep 92 % of
    their tokens with, 17 % without."""
    kept, lost = other_game("patch", 0.5), other_game("patch", 0.0)
    assert kept["new_gain"] > 8
    assert kept["retention"] > 0.98
    assert kept["moving"] > 0.7
    assert lost["retention"] < 0.8
    assert lost["moving"] < kept["moving"] - 0.2
    assert lost["old_fall"] > kept["old_fall"] + 6


def test_a_vqvae_too_forgets_less_with_rehearsal() -> None:
    """Measured over three seeds: 3.6 to 4.2 dB of Breakout less are lost with rehearsal."""
    options = {"reseed_codes": 8, "ema_decay": 0.99}
    kept, lost = (other_game("vqvae", share, 4, 40, **options) for share in (0.5, 0.0))
    assert kept["new_gain"] > 3
    assert lost["old_fall"] > kept["old_fall"] + 1.5
    # Its encoder moves under the codes: the background's tokens change with and without rehearsal.
    assert lost["moving"] < kept["moving"]


def test_every_row_with_pixels_has_the_tokens_of_the_tokenizer_as_it_is_now() -> None:
    continual, replay, tokenizer = started(window_frames=ENVS * STEPS // 2, drift_bound=1.0)
    ids = np.array([row for row in range(len(replay)) if row // ENVS < STEPS - 4])
    ids = ids[ids // ENVS > 3]
    newest = ids[ids >= continual.window.oldest_id + 3 * ENVS]
    gone = ids[ids < continual.window.oldest_id]
    frames = film("breakout").reshape(-1, 84, 64, 3)
    before = replay[ids].state[:, -1]
    replay.update_priorities(ids, 1.0 + ids % 5)
    weights = replay.stats()["priority_sum"]
    play(continual, replay, tokenizer, film("mspacman")[:20])
    ids_now = len(replay)
    metrics = continual.train()
    assert metrics["drift/retention_moving"] < 1
    now = tokenizer.encode(torch.from_numpy(frames)).numpy()
    assert (now[ids] != before).any()
    kept = newest[newest >= continual.window.oldest_id + 3 * ENVS]
    assert len(kept) > 50
    rows = replay[kept]
    for back in range(4):
        assert (rows.state[:, 3 - back] == now[kept - back * ENVS]).all()
    assert (replay[gone].state[:, -1] == before[np.isin(ids, gone)]).all()  # no pixels, bound 1
    assert len(replay) == ids_now
    added = (20 * ENVS) * 5.0**0.6  # new rows come with the largest priority
    assert replay.stats()["priority_sum"] == pytest.approx(weights + added, rel=0.05)


def test_rows_without_pixels_are_dropped_once_the_drift_passes_the_bound() -> None:
    continual, replay, tokenizer = started(window_frames=ENVS * STEPS // 2, drift_bound=0.0)
    play(continual, replay, tokenizer, film("mspacman")[:20])
    stored = len(replay)
    metrics = continual.train()
    oldest = continual.window.oldest_id
    assert metrics["drift/forgotten"] == oldest == stored - len(replay)
    drawn = replay.sample(256)
    assert drawn.index.min() >= oldest  # and its whole history, or the state would show old tokens
    first = {
        tuple(tokens)
        for tokens in tokenizer.encode(
            torch.from_numpy(film("breakout").reshape(-1, 84, 64, 3)[oldest:])
        ).tolist()
    } | {
        tuple(tokens)
        for tokens in tokenizer.encode(
            torch.from_numpy(film("mspacman")[:20].reshape(-1, 84, 64, 3))
        ).tolist()
    }
    assert {tuple(tokens) for tokens in drawn.state.reshape(-1, 336).tolist()} <= first


def test_rows_of_a_look_that_came_after_the_warm_up_are_dropped_when_it_drifts() -> None:
    """Breakout, MsPacman, then Pong until MsPacman has no pixels. Breakout's own tokens keep within
    the bound, MsPacman's do not: with the warm-up's frames alone as bank none of its rows was
    dropped, and 41 % of their tokens were right."""
    bound = 0.15
    continual, replay, tokenizer = started(window_frames=ENVS * STEPS, drift_bound=bound)
    play(continual, replay, tokenizer, film("mspacman"))
    assert continual.train()["drift/bank_frames"] > 40
    play(continual, replay, tokenizer, film("pong"))
    pacman = film("mspacman").reshape(-1, 84, 64, 3)
    forgotten = 0.0
    for _ in range(5):
        metrics = continual.train()
        forgotten += metrics["drift/forgotten"]
        assert metrics["drift/retention_since_start"] > 1 - bound
        assert metrics["drift/retention_moving_since_start"] > 1 - bound
        stats = replay.stats()
        first = max(ENVS * STEPS, stats["added"] - stats["stored"]) + 4 * ENVS
        rows = np.arange(first, 2 * ENVS * STEPS - 4 * ENVS)
        now = tokenizer.encode(torch.from_numpy(pacman[rows - ENVS * STEPS])).numpy()
        assert not len(rows) or (replay[rows].state[:, -1] == now).mean() > 1 - 2 * bound
    assert forgotten == continual.window.oldest_id == 2 * ENVS * STEPS


def test_held_out_frames_are_neither_drawn_nor_filed() -> None:
    continual, _, _ = started()
    held_out = {frame.tobytes() for frame in film("breakout")[:, -1]}
    seen = {frame.tobytes() for frame in film("breakout")[:, :-1].reshape(-1, 84, 64, 3)}
    only_held_out = held_out - seen
    assert len(only_held_out) > 50
    drawn = continual._frames(400, np.random.default_rng(0)).numpy()
    assert not only_held_out & {frame.tobytes() for frame in drawn}
    rehearsed = continual.rehearsal.draw(200, np.random.default_rng(0))
    assert not only_held_out & {frame.tobytes() for frame in rehearsed}
    assert (continual.bank.frames[-1] == film("breakout")[-1, -1]).all()


@pytest.mark.parametrize("envs", [ENVS, 1])
def test_later_frames_that_are_held_out_go_to_the_bank_alone(envs: int) -> None:
    continual, replay, tokenizer = started(window_frames=ENVS * STEPS, sample_frames=8)
    continual._envs = envs  # as if one game had played all frames
    play(continual, replay, tokenizer, film("mspacman"))
    continual.train()
    later = np.arange(ENVS * STEPS, 2 * ENVS * STEPS)
    held_out = later[continual.is_held_out(later)]
    assert (held_out % envs == envs - 1).all()
    assert len(held_out) / len(later) == pytest.approx(1 / 8 / envs, rel=0.4)
    assert set(continual.bank.ids[40:]) <= set(held_out)
    assert len(continual.bank.ids) > 40
    frames = film("mspacman").reshape(-1, 84, 64, 3)
    assert (continual.bank.frames[40:] == frames[continual.bank.ids[40:] - ENVS * STEPS]).all()
    trained = {frame.tobytes() for frame in np.delete(frames, held_out - ENVS * STEPS, axis=0)}
    only_held_out = {frame.tobytes() for frame in frames[held_out - ENVS * STEPS]} - trained
    assert only_held_out
    rng = np.random.default_rng(0)
    drawn = [*continual._frames(2000, rng).numpy(), *continual.rehearsal.draw(500, rng)]
    assert not only_held_out & {frame.tobytes() for frame in drawn}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    config = replace(SMOKE, run_dir=tmp_path / "run")
    with create_run(config, device="cpu", protocol={}, need_bytes=0) as opened:
        yield opened


def state_of(parts: Parts) -> dict[str, torch.Tensor]:
    assert parts.continual is not None
    modules = {
        "tokenizer": parts.tokenizer,
        "codes": parts.continual.codes,
        "agent": parts.agent,
        "world_model": parts.world_model,
    }
    state = {
        f"{name}.{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, store in parts.continual._stores().items():
        for key, array in store.arrays().items():
            state[f"{name}.{key}"] = torch.from_numpy(array.astype(np.int64))
    return state


def learn(parts: Parts) -> dict[str, torch.Tensor]:
    assert parts.continual is not None
    for _ in range(2):
        train_tokenizer(parts, parts.continual)
        train_agent(parts)
        train_world_model(parts)
    parts.settle()
    return state_of(parts)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(run: RunDir) -> None:
    parts = build(SMOKE)
    with MetricsLog(run.path, resume_at=-1) as log, Reporter.create(1) as reporter:
        prepare(parts, log, reporter, lambda: False)
    assert parts.continual is not None
    for _ in range(15):
        collect(parts)
    train_tokenizer(parts, parts.continual)
    for _ in range(6):
        collect(parts)
        train_agent(parts)
    dream(parts)
    save(parts, run)
    at_save = state_of(parts)
    bank = parts.continual.bank
    assert len(bank.frames) > len(bank.frames_of_start)  # it has grown, and is part of the state
    straight = learn(parts)
    assert len(parts.dreams) == 0  # dreamed of tokens that have another meaning now
    history = parts.collector._history.btk
    with torch.no_grad():
        newest = parts.tokenizer.encode(torch.from_numpy(parts.collector._seen[-1][0]))
    assert history[:, -1].equal(newest)
    parts.envs.close()

    resumed = restore(run, SMOKE)
    assert resumed is not None
    begun = state_of(resumed)
    assert begun.keys() == at_save.keys()
    assert all(value.equal(at_save[name]) for name, value in begun.items())
    after = learn(resumed)
    for name, value in after.items():
        assert value.equal(straight[name]), name
    assert any(not value.equal(at_save[name]) for name, value in after.items())
    for _ in range(3):  # and goes on: ids of frames and rows still agree
        collect(resumed)
    assert resumed.continual is not None
    assert resumed.continual.window.next_id == resumed.replay.stats()["added"]
    resumed.envs.close()


def test_frames_of_an_earlier_version_are_refused_by_one_line(tmp_path: Path) -> None:
    continual, _, _ = started()
    continual.save(tmp_path / "frames")
    arrays = safetensors.numpy.load_file(tmp_path / "frames")
    del arrays["bank.ids"]
    safetensors.numpy.save_file(arrays, tmp_path / "frames")
    with pytest.raises(UserError, match="frames: of an earlier version, its bank has no 'ids'"):
        continual.load(tmp_path / "frames")


def test_a_whole_run_in_mode_full(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--game", "breakout", "--preset", "smoke", "--loop.mode", "full"]
    arguments += ["--env.max-frames", "480", "--loop.eval-every", "1000"]
    main_train([*arguments, "--steps", "420", "--run-dir", str(folder)])
    rows = read_metrics(folder / "metrics.jsonl")
    trained = [row for row in rows if "tokenizer/drift/retention" in row]
    assert [row["env_step"] for row in trained] == [300, 400]
    for row in trained:
        assert 0 < row["tokenizer/drift/retention_moving"] <= 1
        assert row["tokenizer/drift/bank_frames"] > 0
        assert row["tokenizer/train/codes_in_use"] > 2
    # A dream that falls due with a training comes after it, or it would be forgotten at once.
    pool = load_file(folder / "checkpoints" / "420" / "dreams.safetensors")
    assert pool["count"] > 0
    # The codes moved; what was kept at the end knows them as they are.
    _, weights = read_model(folder / "models" / "tokenizer.safetensors", "tokenizer")
    codes = codes_checksum(weights["codes"])
    assert read_meta(folder / "models" / "world_model.safetensors")["codes"] == codes
    assert open_bank(folder / "gold_indices.json").tokenizer == codes
    result = json.loads((folder / "result.json").read_text())
    assert result["world_model_gold"]["env_step"] == 420
    assert result["world_model_gold"]["not_comparable"] == []
    # The tokenizer's figures are of the one that the run ends with, on frames that it never saw.
    tokenizer = build_tokenizer(SMOKE.tokenizer)
    tokenizer.load_state_dict(weights)
    kept = safetensors.numpy.load_file(folder / "checkpoints" / "420" / "frames.safetensors")
    held_out = kept["bank.frames"][: len(kept["bank.first"])]
    quality = tokenizer_quality(tokenizer, torch.from_numpy(held_out))
    assert quality.items() <= result["tokenizer_held_out"].items()
    at = {row["env_step"]: row for row in rows if "tokenizer/heldout/psnr" in row}
    assert sorted(at) == [200, 420]
    assert at[420]["tokenizer/heldout/psnr"] == quality["psnr"] != at[200]["tokenizer/heldout/psnr"]


def test_a_training_left_out_at_the_end_is_made_up_for_when_the_run_goes_on(run: RunDir) -> None:
    def trainings(steps: int) -> int:
        quiet = replace(SMOKE.loop, eval_every=10_000)
        config = replace(SMOKE, steps=steps, loop=quiet)
        parts = restore(run, config) or build(config)
        assert parts.continual is not None
        with parts.envs, MetricsLog(run.path, resume_at=-1) as log, Reporter.create(1) as reporter:
            if not parts.counters.env_step:
                prepare(parts, log, reporter, lambda: False)
            before = parts.continual._trainings
            loop(parts, run, log, reporter, lambda: False)
        assert parts.counters.env_step == steps
        assert len(parts.dreams) > 0 or steps == 300
        return parts.continual._trainings - before

    assert trainings(300) == 0  # nothing could follow it
    assert trainings(300) == 0
    assert trainings(340) == 1  # that of 300
    assert trainings(380) == 0


def test_a_window_shorter_than_what_is_played_between_trainings_is_refused() -> None:
    few = replace(SMOKE, continual=replace(SMOKE.continual, window_frames=103))
    with pytest.raises(UserError, match=r"--continual.window-frames 103: must be at least 104"):
        check(few)
    check(replace(few, loop=replace(few.loop, mode="frozen")))
    odd = replace(SMOKE, continual=replace(SMOKE.continual, drift_bound=1.5))
    with pytest.raises(UserError, match=r"--continual.drift-bound 1.5: must be within 0..1"):
        check(odd)
