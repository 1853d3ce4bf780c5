"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

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


def test_links_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
