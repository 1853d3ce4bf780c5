"""One model in one safetensors file, with what it is in the metadata: ``--vqvae`` and ``--wm``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wmfast.config_json import config_to_json
from wmfast.disk import one_line_errors, write_atomic
from wmfast.errors import UserError
from wmfast.weights import host_weights

Kind = Literal["tokenizer", "world_model", "agent"]
FORMAT = "wmfast-model-1"


def save_model(
    path: Path, module: nn.Module, kind: Kind, config: Any, meta: Mapping[str, Any]
) -> None:
    """Writes weights, kind, configuration and notes to one file, atomically.

    Args:
        config: the dataclass that the module was built from.
        meta: JSON values (game, env_step, quality ...); they are shown, never interpreted.

    Raises:
        UserError: the disk is full or not writable; an older file is untouched.
    """
    weights = host_weights(module)
    facts = {
        "format": FORMAT,
        "kind": kind,
        "config": json.dumps(config_to_json(config)),
        "meta": json.dumps(dict(meta)),
    }
    facts["sha256"] = _digest(facts, weights)
    with one_line_errors("write", path):
        write_atomic(path, safetensors.torch.save(weights, facts))


def read_model(path: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `save_model` wrote.

    Returns:
        The configuration as JSON values (`config_from_json` makes the dataclass) and the weights,
        on the CPU.

    Raises:
        UserError: the file is absent, foreign, damaged or of another kind.
    """
    wanted = f"a wmfast {kind} file (safetensors) is needed"
    facts, weights = _read(path, wanted)
    if facts["kind"] != kind:
        raise UserError(f"{path} holds {_a(facts['kind'])}: {wanted}")
    config = json.loads(facts["config"])
    assert isinstance(config, dict)
    return config, weights


def read_meta(path: Path) -> dict[str, Any]:
    """The notes (`meta`) that `save_model` wrote, whatever the kind of model.

    Raises:
        UserError: the file is absent, foreign or damaged.
    """
    facts, _ = _read(path, "a wmfast model file (safetensors) is needed")
    meta = json.loads(facts["meta"])
    assert isinstance(meta, dict)
    return meta


def _read(path: Path, wanted: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights, when the checksum over both is right."""
    with one_line_errors("read", path), path.open("rb") as file:
        head = file.read(2)
    try:
        with safe_open(path, "pt") as model:
            facts = dict(model.metadata() or {})
            weights = {name: model.get_tensor(name) for name in model.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if head == b"PK" or head[:1] == b"\x80":
            raise UserError(f"{path} is a pickle, which is never loaded: {wanted}") from error
        raise UserError(f"{path} is damaged or no safetensors file ({error}): {wanted}") from error
    if facts.get("format") != FORMAT:
        raise UserError(f"{path} is safetensors but no wmfast model: {wanted}")
    if facts.pop("sha256", None) != _digest(facts, weights):
        raise UserError(f"{path} is damaged (its checksum is wrong): {wanted}")
    return facts, weights


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _digest(facts: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over metadata and tensors; safetensors itself has no checksum."""
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
