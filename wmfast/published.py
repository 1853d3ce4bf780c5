"""Published Atari 100k scores, copied with their sources into ``published_scores.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

ENV_STEPS = 100_000
"""Of every published agent: 400,000 frames, frame skip 4."""


@dataclass(frozen=True)
class PublishedAgent:
    """An agent's raw game scores, and what they depend on."""

    name: str
    source: str
    """GitHub repository and folder that the figures were copied from."""
    sticky: float | None
    """Probability of a sticky action; None where the source doesn't say."""
    note: str
    scores: Mapping[str, tuple[float, ...]]
    """By wmfast's name of the game, one a seed."""


@cache
def published_agents() -> tuple[PublishedAgent, ...]:
    """All of them, oldest first as in the file."""
    text = resources.files("wmfast").joinpath("published_scores.json").read_text()
    return tuple(
        PublishedAgent(
            name,
            entry["source"],
            entry["sticky"],
            entry["note"],
            {game: tuple(scores) for game, scores in entry["scores"].items()},
        )
        for name, entry in json.loads(text)["agents"].items()
    )
