"""The 104 Atari games by name, and the scores that human-normalised figures are made of."""

from __future__ import annotations

import difflib
import re

from ale_py import roms

# These need two players: the emulator has their files, but no environment id.
_TWO_PLAYER = frozenset({"combat", "joust", "maze_craze", "warlords"})


def _squash(name: str) -> str:
    bare = re.sub(r"(noframeskip|deterministic)?-v\d+$", "", name.strip().lower())
    return re.sub(r"[_\-\s]", "", bare.removeprefix("ale/"))


_GAMES: dict[str, str] = {
    _squash(rom): rom for rom in sorted(roms.get_all_rom_ids()) if rom not in _TWO_PLAYER
}
GAMES: tuple[str, ...] = tuple(_GAMES.values())
"""The 104 games, by the emulator's names (``ms_pacman``)."""

RANDOM_HUMAN: dict[str, tuple[float, float]] = {
    "alien": (227.8, 7127.7),
    "amidar": (5.8, 1719.5),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "bank_heist": (14.2, 753.1),
    "battle_zone": (2360.0, 37187.5),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "chopper_command": (811.0, 7387.8),
    "crazy_climber": (10780.5, 35829.4),
    "demon_attack": (152.1, 1971.0),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "hero": (1027.0, 30826.4),
    "jamesbond": (29.0, 302.8),
    "kangaroo": (52.0, 3035.0),
    "krull": (1598.0, 2665.5),
    "kung_fu_master": (258.5, 22736.3),
    "ms_pacman": (307.3, 6951.6),
    "pong": (-20.7, 14.6),
    "private_eye": (24.9, 69571.3),
    "qbert": (163.9, 13455.0),
    "road_runner": (11.5, 7845.0),
    "seaquest": (68.4, 42054.7),
    "up_n_down": (533.4, 11693.2),
}
"""Scores of random play and of a human tester in the 26 games of Atari 100k (Kaiser et al. 2020,
arXiv:1903.00374), raw game points from no-op starts; the figures that the results tables of IRIS
(eloialonso/iris) and DIAMOND (eloialonso/diamond) normalise by, the same as in deepmind/dqn_zoo."""


def game_name(name: str) -> str:
    """The emulator's name of a game: ``ALE/MsPacman-v5`` and ``mspacman`` are ``ms_pacman``.

    Blind to case, ``_``, ``-``, spaces and the id's prefix and version. Raises ValueError with the
    nearest names for a game that is not there.
    """
    key = _squash(name)
    if key in _GAMES:
        return _GAMES[key]
    near = [_GAMES[k] for k in difflib.get_close_matches(key, _GAMES, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else "the names are those of ale-py"
    raise ValueError(f"unknown game {name!r} (of {len(GAMES)}): {hint}")


def human_normalised(game: str, score: float) -> float | None:
    """(score - random) / (human - random): 0 is random play, 1 a human; None without figures.

    Raises ValueError for an unknown game.
    """
    figures = RANDOM_HUMAN.get(game_name(game))
    if figures is None:
        return None
    random, human = figures
    return (score - random) / (human - random)
