"""An optimiser's state as tensors (for safetensors) and numbers (for JSON), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wmfast.errors import UserError

# How an optimiser runs depends on the device it was built for, not on what it has learned.
BUILT_IN = ("capturable", "differentiable", "foreach", "fused")


def split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, keyed ``state.<param>.<entry>`` or ``group.<i>.<entry>``, and JSON values."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {"state": {}, "groups": []}
    for index, entries in whole["state"].items():
        numbers["state"][str(index)] = _take_tensors(entries, f"state.{index}", tensors)
    for number, group in enumerate(whole["param_groups"]):
        numbers["groups"].append(_take_tensors(group, f"group.{number}", tensors))
    return tensors, numbers


def restore_optimizer(
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    source: str,
) -> None:
    """The inverse of `split_optimizer`, bit for bit; the flags in `BUILT_IN` stay as they are.

    Raises:
        UserError: the optimiser has other parameter groups or shapes; the message names `source`.
    """
    live_groups = optimizer.param_groups
    groups = [dict(group) for group in numbers["groups"]]
    state = {int(index): dict(entries) for index, entries in numbers["state"].items()}
    for key, tensor in tensors.items():
        part, number, entry = key.split(".", 2)
        (state if part == "state" else groups)[int(number)][entry] = tensor
    _check_fits(live_groups, groups, state, source)
    parameters = [parameter for group in live_groups for parameter in group["params"]]
    for index, entries in state.items():
        entries.update(_laid_out_like(parameters[index], entries))
    for group, live_group in zip(groups, live_groups, strict=True):
        for key, live in live_group.items():
            if key in BUILT_IN or key not in group:  # a newer torch has more keys
                group[key] = live
            elif isinstance(live, Tensor):  # a capturable learning rate
                group[key] = torch.as_tensor(group[key], dtype=live.dtype, device=live.device)
            elif isinstance(group.get(key), Tensor):
                group[key] = group[key].item()
            elif isinstance(live, tuple):
                group[key] = tuple(group[key])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_like(parameter: Tensor, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Moments in the memory layout of their parameter: a fused step walks both side by side."""
    return {
        name: torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        for name, value in entries.items()
        if isinstance(value, Tensor) and value.dim()
    }


def _take_tensors(
    entries: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    tensors.update({f"{prefix}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)})
    return {key: value for key, value in entries.items() if not isinstance(value, Tensor)}


def _check_fits(
    live_groups: list[dict[str, Any]],
    groups: list[dict[str, Any]],
    state: Mapping[int, Mapping[str, Any]],
    source: str,
) -> None:
    sizes = [len(group["params"]) for group in groups]
    live_sizes = [len(group["params"]) for group in live_groups]
    if sizes != live_sizes:
        raise UserError(
            f"{source} does not fit: parameters in each group {sizes}, not {live_sizes}"
        )
    parameters = [parameter for group in live_groups for parameter in group["params"]]
    for index, entries in state.items():
        shape = tuple(parameters[index].shape)
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() and tuple(value.shape) != shape:
                raise UserError(
                    f"{source} does not fit: {name} of parameter {index} is "
                    f"{tuple(value.shape)}, not {shape}"
                )
