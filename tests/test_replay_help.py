"""What a person sees who asks: help(), and why a buffer can't be pickled."""

import ast
import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest

from wmfast import TokenReplay, _core

STUBS = Path(__file__).parents[1] / "wmfast" / "_core.pyi"


def documented() -> dict[str, str]:
    """Docstrings of the stubs' TokenReplay, by the name of the method; the class's own by ''."""
    tree = ast.parse(STUBS.read_text())
    replay = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TokenReplay")
    members = [n for n in replay.body if isinstance(n, ast.FunctionDef)]
    texts = {"": ast.get_docstring(replay), **{n.name: ast.get_docstring(n) for n in members}}
    return {name: text for name, text in texts.items() if text}


@pytest.mark.parametrize("name", sorted(documented()))
def test_help_says_what_the_stubs_say(name: str) -> None:
    shown = inspect.getdoc(getattr(TokenReplay, name) if name else TokenReplay)
    assert documented()[name] in inspect.cleandoc(shown or "")


def test_every_public_method_is_documented() -> None:
    methods = {
        name
        for name in dir(TokenReplay)
        if not name.startswith("_") and not isinstance(getattr(TokenReplay, name), property)
    }
    assert methods <= documented().keys()
    assert "Named arrays" in (_core.Batch.__doc__ or "")


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pickling_points_to_save_and_load(how) -> None:
    replay = TokenReplay(16, 2, frame_shape=(4,))
    replay.add(np.zeros((2, 4), np.uint16), [0, 0], [0.0, 0.0], [False] * 2, [False] * 2)
    with pytest.raises(TypeError, match=r"save\(path\).*TokenReplay\.load"):
        how(replay)
