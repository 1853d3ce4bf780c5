"""Shifts and masks of token histories: by hand, reproducible, and without an effect on acting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wmfast.agent import DoubleDQN
from wmfast.config import AgentConfig
from wmfast.models.token_augment import TokenAugment
from wmfast.types import Transitions

H, W, MASK = 21, 16, 99
CONV = AgentConfig(kind="conv", d_model=8)


def shifting(shift: int = 1, seed: int = 0) -> TokenAugment:
    return TokenAugment(shift=shift, dropout=0.0, mask_token=MASK, seed=seed)


def places(batch: int, frames: int = 4) -> Tensor:
    """Each cell holds its own number, plus 1000 a frame."""
    cells = torch.arange(H * W).expand(batch, frames, -1)
    return cells + 1000 * torch.arange(frames)[:, None]


def moved(grid: Tensor, down: int, right: int) -> Tensor:
    """By hand: the cell that was `down`, `right` of it; beyond the edge the edge's."""
    rows = [min(H - 1, max(0, r + down)) for r in range(H)]
    columns = [min(W - 1, max(0, c + right)) for c in range(W)]
    return grid.view(-1, H, W)[:, rows][:, :, columns].flatten(1)


@pytest.mark.parametrize("shift", [1, 2])
def test_every_history_is_one_of_the_shifts_and_all_of_them_come(shift: int) -> None:
    histories = places(600)
    out = shifting(shift)(histories)
    reach = range(-shift, shift + 1)
    choices = {(d, r): moved(histories[0], d, r) for d in reach for r in reach}
    counts = dict.fromkeys(choices, 0)
    for history in out:
        found = [move for move, wanted in choices.items() if torch.equal(history, wanted)]
        assert len(found) == 1  # the same move for all its frames
        counts[found[0]] += 1
    share = 600 / len(choices)
    assert all(0.4 * share < count < 1.8 * share for count in counts.values())


def test_state_and_next_state_are_moved_independently_and_calls_differ() -> None:
    augment = shifting()
    one, other = augment(places(64)), augment(places(64))
    same = (one == other).flatten(1).all(dim=1).float().mean().item()
    assert same < 0.35  # 1 in 9 by chance


def test_tokens_are_masked_at_the_rate_asked_for() -> None:
    histories = places(50)
    augment = TokenAugment(shift=0, dropout=0.2, mask_token=-1, seed=1)
    out = augment(histories)
    masked = out == -1
    assert masked.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(out[~masked], histories[~masked])
    assert masked.float().mean(dim=(0, 1)).max() < 0.5  # no cell is special
    never = TokenAugment(shift=0, dropout=0.0, mask_token=-1, seed=1)(histories)
    assert torch.equal(never, histories)


def test_the_counter_and_the_seed_decide_everything() -> None:
    one, twin, other = shifting(seed=1), shifting(seed=1), shifting(seed=2)
    histories = places(32)
    for _ in range(3):
        one(histories)
    for copy in (twin, other):
        copy.load_state_dict(one.state_dict())  # as a checkpoint does
    torch.manual_seed(5)
    wanted = one(histories)
    torch.manual_seed(6)
    assert torch.equal(twin(histories), wanted)
    assert not torch.equal(other(histories), wanted)
    before = torch.get_rng_state()
    one(histories)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's randomness is used


def test_learning_sees_shifted_and_masked_histories_and_acting_does_not() -> None:
    config = replace(CONV, shift=1, token_dropout=0.5)
    agent = DoubleDQN(config, vocab_size=8, num_actions=3, seed=4)
    assert agent.online.embedding.num_embeddings == 9  # the mask has a row of its own
    seen: list[Tensor] = []
    agent.online.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    state, next_state = torch.randint(8, (2, 16, 4, 336))
    batch = Transitions(
        state, torch.zeros(16).long(), torch.zeros(16), next_state, torch.ones(16), torch.ones(16)
    )
    agent.act(state)
    assert torch.equal(seen.pop(), state)
    agent.loss(batch)
    next_seen, state_seen = seen  # the target is computed first
    for given, got in ((state, state_seen), (next_state, next_seen)):
        assert (got == 8).float().mean().item() == pytest.approx(0.5, abs=0.03)
        assert not torch.equal(torch.where(got == 8, given, got), given)  # and moved


def test_switched_off_there_is_nothing() -> None:
    agent = DoubleDQN(CONV, vocab_size=8, num_actions=3)
    assert agent.augment is None
    assert agent.online.embedding.num_embeddings == 8
