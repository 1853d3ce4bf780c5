"""The frozen bank: what its indices name, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wmfast import TokenReplay
from wmfast.errors import UserError
from wmfast.gold import as_text, gold_evaluation, mirror_consistency, mirrored_actions
from wmfast.gold_bank import (
    BANK_FILE,
    HORIZON,
    INDEX_FILE,
    TIERS,
    GoldBank,
    choose_tiers,
    codes_checksum,
    open_bank,
    save_bank,
    steps_left,
)
from wmfast.models.prediction import Prediction, WorldModel

ENVS, K, V, STEPS, ACTIONS = 3, 336, 512, 60, 4
ENDS = {0: (24,), 1: (), 2: (9, 31)}  # by env: the steps that end a game


def frame(env: int, step: int) -> int:
    """The one token that fills the frame of an env at a step; an end's successor is one of them."""
    return 100 * (env + 1) + step


def filled() -> TokenReplay:
    replay = TokenReplay(ENVS * 200, ENVS, vocab_size=V, prioritized=False)
    after_end = [False] * ENVS
    for step in range(STEPS):
        frames = np.stack([np.full(K, frame(env, step), np.uint16) for env in range(ENVS)])
        ended = np.array([step in ENDS[env] for env in range(ENVS)])
        actions = np.array([(step + env) % ACTIONS for env in range(ENVS)])
        rewards = np.array([float(step) if not after_end[env] else 99.0 for env in range(ENVS)])
        replay.add(frames, actions, rewards, ended, np.zeros(ENVS, bool))
        after_end = ended.tolist()
    return replay


def bank() -> GoldBank:
    replay = filled()
    return GoldBank(replay, "breakout", "c0de", choose_tiers(replay, ACTIONS, seed=0))


def place(index: int) -> tuple[int, int]:
    return index % ENVS, index // ENVS


def last_step(env: int, step: int) -> int:
    """Of the game that a step belongs to: its end, or the newest stored step with a successor."""
    return min([end for end in ENDS[env] if end >= step] + [STEPS - 2])


def test_the_gold_tier_is_every_step_and_no_final_frame():
    named = {place(int(index)) for index in bank().tiers["gold"]}
    finals = {(env, end + 1) for env in ENDS for end in ENDS[env]}
    everything = {(env, step) for env in range(ENVS) for step in range(STEPS - 1)}
    assert named == everything - finals


def test_the_smaller_tiers_are_balanced_over_actions_and_go_on_long_enough():
    replay = filled()
    tiers = choose_tiers(replay, ACTIONS, seed=0)
    for name in ("canary", "fast"):
        for index in tiers[name]:
            env, step = place(int(index))
            assert last_step(env, step) - step + 1 >= HORIZON
    assert set(tiers["canary"]) <= set(tiers["fast"]) <= set(tiers["gold"])
    again = choose_tiers(filled(), ACTIONS, seed=0)
    assert all(np.array_equal(tiers[name], again[name]) for name in TIERS)


def test_a_small_tier_takes_actions_in_turn(monkeypatch):
    monkeypatch.setattr("wmfast.gold_bank._SIZES", {"canary": 8, "fast": 20})
    replay = filled()
    tiers = choose_tiers(replay, ACTIONS, seed=0)
    for name, each in (("canary", 2), ("fast", 5)):
        actions = [sum(place(int(i))) % ACTIONS for i in tiers[name]]
        assert [actions.count(action) for action in range(ACTIONS)] == [each] * ACTIONS
    assert not np.array_equal(tiers["fast"], choose_tiers(replay, ACTIONS, seed=1)["fast"])


def test_steps_left_counts_to_the_end_of_each_game():
    left = steps_left(filled())
    for env in range(ENVS):
        for step in range(STEPS):
            final = (step - 1) in ENDS[env] or step == STEPS - 1
            expected = 0 if final else last_step(env, step) - step + 1
            assert left[step * ENVS + env] == expected, (env, step)


def test_segments_are_what_the_games_were():
    gold = bank()
    seen = 0
    for batch in gold.segments("gold", batch_size=7):
        for row in range(len(batch.mask_bs)):
            index = int(gold.tiers["gold"][seen])
            env, step = place(index)
            last = last_step(env, step)
            begin = max([end + 2 for end in ENDS[env] if end < step] + [0])
            history = [frame(env, max(begin, step - 3 + t)) for t in range(4)]
            assert batch.tokens_bsk[row, :4, 0].tolist() == history
            for ahead in range(HORIZON):
                real = step + ahead <= last
                assert bool(batch.mask_bs[row, ahead]) is real
                if not real:
                    continue
                assert (batch.tokens_bsk[row, 4 + ahead] == frame(env, step + ahead + 1)).all()
                assert batch.action_bs[row, ahead] == (step + ahead + env) % ACTIONS
                assert batch.reward_bs[row, ahead] == step + ahead
                assert bool(batch.terminated_bs[row, ahead]) is (step + ahead in ENDS[env])
            seen += 1
    assert seen == len(gold.tiers["gold"])


def test_a_saved_bank_opens_as_it_was(tmp_path: Path):
    gold = bank()
    save_bank(tmp_path, gold)
    other = open_bank(tmp_path / INDEX_FILE)
    assert (other.game, other.tokenizer) == ("breakout", "c0de")
    assert all(np.array_equal(gold.tiers[name], other.tiers[name]) for name in TIERS)
    for one, two in zip(gold.segments("gold"), other.segments("gold"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def damage(folder: Path, how: str) -> None:
    index, games = folder / INDEX_FILE, folder / BANK_FILE
    facts = json.loads(index.read_text())
    if how == "no indices":
        index.unlink()
    elif how == "no games":
        games.unlink()
    elif how == "other games":
        data = bytearray(games.read_bytes())
        data[len(data) // 2] ^= 1
        games.write_bytes(data)
    elif how == "not json":
        index.write_text(index.read_text()[:100])
    elif how == "deep":
        index.write_text("[" * 100_000)
    else:
        changes = {
            "format": {"format": "wmfast-gold-0"},
            "tier gone": {"tiers": {"gold": [1]}},
        }
        index.write_text(json.dumps({**facts, **changes[how]}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no indices", "gold_indices.json"),
        ("no games", "gold.replay"),
        ("other games", "gold.replay: not the games"),
        ("not json", "damaged, or not frozen indices"),
        ("format", "damaged, or not frozen indices"),
        ("deep", "damaged, or not frozen indices"),
        ("tier gone", "damaged, or not frozen indices"),
    ],
)
def test_damage_is_named(tmp_path: Path, how: str, says: str):
    save_bank(tmp_path, bank())
    damage(tmp_path, how)
    with pytest.raises(UserError, match=says) as error:
        open_bank(tmp_path / INDEX_FILE)
    assert "\n" not in str(error.value)


DAMAGED = "damaged, or not frozen indices"
LACKING = "tier fast names steps that gold.replay lacks"


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], DAMAGED),
        ({}, DAMAGED),
        ("", DAMAGED),
        (None, DAMAGED),
        (["1"], DAMAGED),
        ([True], DAMAGED),
        ([1.0], DAMAGED),
        ([[1]], DAMAGED),
        ([5, 5], DAMAGED),
        ([5, 1], DAMAGED),
        ([-1], LACKING),
        ([10**30], LACKING),
        ([ENVS * (STEPS - 1)], LACKING),  # its next frame is not stored
        ([1, ENVS * 25], LACKING),  # that an end left behind: no action was taken on it
    ],
)
def test_a_tier_is_a_rising_list_of_steps_of_the_bank(tmp_path: Path, ids: object, says: str):
    save_bank(tmp_path, bank())
    index = tmp_path / INDEX_FILE
    facts = json.loads(index.read_text())
    facts["tiers"]["fast"] = ids
    index.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=says) as error:
        open_bank(index)
    assert "\n" not in str(error.value)
    facts["tiers"]["fast"] = [1, 5]
    index.write_text(json.dumps(facts))
    assert open_bank(index).tiers["fast"].tolist() == [1, 5]


def test_games_shorter_than_the_horizon_are_judged_as_far_as_they_go(tmp_path: Path):
    replay = TokenReplay(200, 1, vocab_size=V, prioritized=False)
    for step in range(21):
        ended = [step % (HORIZON - 1) == HORIZON - 2]
        replay.add(np.full((1, K), step, np.uint16), [step % ACTIONS], [0.0], [False], ended)
    tiers = choose_tiers(replay, ACTIONS, seed=0)
    assert 0 < steps_left(replay).max() < HORIZON
    assert all(tiers[name].tolist() == tiers["gold"].tolist() for name in TIERS)
    short = GoldBank(replay, "pong", "c0de", tiers)
    save_bank(tmp_path, short)
    result = gold_evaluation(Next(), Pixels(), open_bank(tmp_path / INDEX_FILE), "canary", "abcd")
    assert result["horizons"]["5"]["changed"]["accuracy"] == 1.0
    assert result["horizons"]["10"]["all"]["tokens"] == 0


class Next(WorldModel):
    """Says that every token goes up by one; in the first `wrong` cells by two."""

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        last_bk = history_btk[:, -1]
        said_bk = (last_bk + 1 + (torch.arange(K) < self.wrong)) % V
        logits = torch.nn.functional.one_hot(said_bk, V) * 5.0 + action_b[:, None, None] * 0.0
        return Prediction(logits, last_bk, None, None, None, None)


class Pixels:
    """A tokenizer whose frame is one grey value a cell: the token, halved."""

    codes = torch.zeros(V, 1)

    def decode(self, tokens_bk: Tensor) -> Tensor:
        cells = (tokens_bk // 2).to(torch.uint8).view(-1, 21, 16)
        grey = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return grey[..., None].expand(*grey.shape, 3)

    def encode(self, frames_bhwc: Tensor) -> Tensor:
        return frames_bhwc[:, ::4, ::4, 0].long().flatten(1) * 2


def test_the_evaluation_of_a_known_model(monkeypatch):
    monkeypatch.setattr("wmfast.gold_bank._SIZES", {"canary": 16, "fast": 20})
    meanings = ("NOOP", "FIRE", "RIGHT", "LEFT")
    result = gold_evaluation(Next(), Pixels(), bank(), "canary", meanings)
    assert result["steps"] == 16
    for quality in result["horizons"].values():
        assert quality["changed"]["accuracy"] == 1.0
        assert quality["changed"]["copy_accuracy"] == 0.0
    assert result["action_sensitivity"] == 0
    assert result["psnr_moving"]["5"]["dream"] is None  # not one wrong pixel
    assert 30 < result["psnr_moving"]["5"]["copy"] < 50
    worse = gold_evaluation(Next(wrong=84), Pixels(), bank(), "canary", meanings)
    assert worse["horizons"]["10"]["changed"]["accuracy"] == pytest.approx(0.75)
    assert worse["psnr_moving"]["10"]["dream"] < 60
    text = as_text(worse)
    assert "75.0" in text
    assert "after 10 steps" in text
    assert json.loads(json.dumps(worse)) == worse
    other = gold_evaluation(Next(), Pixels(), GoldBank(*_of("pong")), "canary", meanings)
    assert other["mirror_consistency"] is None


class Watchful(Next):
    """Sure of an end where the newest frame is that of one, and of a reward at every step."""

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        shown_b = history_btk[:, -1, 0]
        ends_b = sum(shown_b == frame(env, end) for env in ENDS for end in ENDS[env])
        sign_bc = torch.tensor([0.0, 0.0, 9.0]).expand(len(shown_b), 3)
        return (
            super()
            .forward(history_btk, action_b)
            ._replace(
                reward_sign_logits_bc=sign_bc,
                reward_magnitude_b=torch.ones(len(shown_b)),
                done_logit_b=20.0 * ends_b - 10.0,
            )
        )


def test_events_are_counted_over_the_whole_bank_where_the_ends_are():
    meanings = ("NOOP", "FIRE", "RIGHT", "LEFT")
    events = gold_evaluation(Watchful(), Pixels(), bank(), "fast", meanings)["events"]
    assert events["ends"] == 3  # all of them; the tier itself has none
    assert events["done_precision"] == events["done_recall"] == 1.0
    assert events["steps"] == len(bank().tiers["gold"])
    assert events["rewards"] == events["steps"] - ENVS  # step 0 pays 0
    assert events["reward_recall"] == 1.0
    canary = gold_evaluation(Watchful(), Pixels(), bank(), "canary", meanings)
    assert canary["events"] is None
    assert "recall" not in as_text(canary)
    fast = as_text({**canary, "events": events | {"ends": 0.0}})
    assert "done: precision 100 %, recall there were none, in" in fast


def test_a_part_of_a_tier_is_spread_over_the_games():
    gold = bank()
    part = torch.cat([batch.tokens_bsk for batch in gold.segments("gold", most=5, batch_size=2)])
    whole = torch.cat([batch.tokens_bsk for batch in gold.segments("gold")])
    last = len(whole) - 1
    assert torch.equal(
        part, whole[[0, round(last / 4), round(last / 2), round(3 * last / 4), last]]
    )
    assert len(list(gold.segments("gold", most=10**6))) == len(list(gold.segments("gold")))


class Wavering(Next):
    """Wrong everywhere while it is in training, as a model with dropout may be."""

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        self.wrong = K // 2 if self.training else 0
        return super().forward(history_btk, action_b)


def test_every_figure_is_that_of_eval_mode():
    meanings = ("NOOP", "FIRE", "RIGHT", "LEFT")
    model = Wavering().train()
    figures = gold_evaluation(model, Pixels(), bank(), "canary", meanings)
    assert model.training
    assert figures == gold_evaluation(Wavering().eval(), Pixels(), bank(), "canary", meanings)
    assert figures["mirror_consistency"] is not None


def _of(game: str) -> tuple[TokenReplay, str, str, dict[str, np.ndarray]]:
    gold = bank()
    return gold.replay, game, gold.tokenizer, gold.tiers


def test_mirrored_actions_exchange_left_and_right():
    meanings = ("NOOP", "FIRE", "RIGHT", "LEFT", "UPRIGHT", "UPLEFT")
    assert mirrored_actions(meanings) == [0, 1, 3, 2, 5, 4]
    assert mirrored_actions(("NOOP", "RIGHT")) is None


class Drift(WorldModel):
    """The picture moves a cell to the right under action 1 and to the left under action 2."""

    def __init__(self, *, one_sided: bool) -> None:
        super().__init__()
        self.one_sided = one_sided

    def forward(self, history_btk: Tensor, action_b: Tensor) -> Prediction:
        grid = history_btk[:, -1].view(-1, 21, 16)
        right = grid.roll(1, 2)
        left = right if self.one_sided else grid.roll(-1, 2)
        said = torch.where((action_b == 1)[:, None, None], right, left).flatten(1)
        logits = torch.nn.functional.one_hot(said, V).float()
        return Prediction(logits, history_btk[:, -1], None, None, None, None)


@pytest.mark.parametrize(("one_sided", "agreement"), [(False, 1.0), (True, 0.1)])
def test_mirror_consistency_tells_left_from_right(one_sided: bool, agreement: float):
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(V, (8, 14, K), generator=g)
    batch = next(iter(bank().segments("gold", batch_size=8)))
    batch = batch._replace(tokens_bsk=tokens, action_bs=torch.ones_like(batch.action_bs))

    def mirror(tokens_bk: Tensor) -> Tensor:
        return tokens_bk.view(-1, 21, 16).flip(2).flatten(1)

    value = mirror_consistency(Drift(one_sided=one_sided), mirror, [batch], [0, 2, 1, 3])
    assert value == pytest.approx(agreement, abs=0.1 if one_sided else 1e-9)


def test_the_codes_checksum_tells_tokenizers_apart():
    codes = torch.arange(6.0).view(2, 3)
    assert codes_checksum(codes) == codes_checksum(codes.clone())
    assert codes_checksum(codes) != codes_checksum(codes + 1e-6)
