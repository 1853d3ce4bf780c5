"""What the README shows runs as it stands there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

from wmfast.checks import flat
from wmfast.cli import parse
from wmfast.config import Config
from wmfast.launch import resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["token_replay", "kernels"])
def test_examples(example: str) -> None:
    names: dict[str, object] = {}
    exec(example, names)
    if "batch" in names:
        assert names["batch"].state.shape == (32, 4, 336)  # as its comment says
    else:
        assert names["index"].shape == (8, 336)
        assert isinstance(names["out"], torch.Tensor)
        assert names["out"].shape == (2, 4, 1344, 64)


COMMANDS = [c for c in re.findall(r"^wmfast-train (.+)$", README, flags=re.MULTILINE)
            if "..." not in c]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_training_commands_are_accepted(command: str) -> None:
    arguments = command.partition("#")[0].split()
    config = resolve(arguments, lambda default: parse(Config, arguments, "wmfast-train", default))
    fields = flat(config)
    for name, value in itertools.pairwise(arguments):
        if "." in name:  # what the command is shown for is what it sets
            assert str(fields[name.lstrip("-").replace("-", "_")]) == value


def test_the_commands_show_mode_full_and_curiosity() -> None:
    assert any("--loop.mode full" in command for command in COMMANDS)
    assert any("--agent.curiosity" in command for command in COMMANDS)


def test_links_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
