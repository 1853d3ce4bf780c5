"""States of random generators as JSON values, so that a resumed run draws what it would have."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from wmfast.errors import UserError

Generators = Mapping[str, "torch.Generator | np.random.Generator"]


def rng_state(generators: Generators) -> dict[str, Any]:
    """JSON values of the generators' states, by name (torch's own is `torch.default_generator`)."""
    return {name: _state(generator) for name, generator in generators.items()}


def restore_rng(generators: Generators, saved: Mapping[str, Any]) -> None:
    """Sets each generator to the state that `rng_state` took of the one of that name.

    Raises:
        UserError: a generator has no saved state, or one of another kind.
    """
    for name, generator in generators.items():
        if name not in saved:
            raise UserError(f"no random state {name!r} was saved; there is {', '.join(saved)}")
        try:
            if isinstance(generator, torch.Generator):
                data = bytearray(base64.b64decode(saved[name]["torch"]))
                generator.set_state(torch.frombuffer(data, dtype=torch.uint8))
            else:
                generator.bit_generator.state = _from_json(saved[name]["numpy"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"the random state {name!r} does not fit: {error!r}") from error


def _state(generator: torch.Generator | np.random.Generator) -> dict[str, Any]:
    if isinstance(generator, torch.Generator):
        return {"torch": base64.b64encode(generator.get_state().numpy().tobytes()).decode()}
    return {"numpy": _to_json(generator.bit_generator.state)}


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "values"}:
        return np.array(value["values"], dtype=value["dtype"])
    return {key: _from_json(item) for key, item in value.items()}
