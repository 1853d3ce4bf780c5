"""A module's weights on their way to a file and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from wmfast.errors import UserError


def host_weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict as contiguous copies in host memory."""
    return host_copies(_plain(module).state_dict())


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory; safetensors refuses tensors that share memory."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies the weights into the module, which keeps its device and dtype.

    Raises:
        UserError: names or shapes differ; one line names `source` and the first misfits.
    """
    module = _plain(module)
    own = module.state_dict()
    misfits = [f"{name} missing" for name in sorted(own.keys() - weights.keys())]
    misfits += [f"{name} unknown" for name in sorted(weights.keys() - own.keys())]
    misfits += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise UserError(f"{source} does not fit the model: {', '.join(misfits[:3])}{more}")
    module.load_state_dict(weights)


def _plain(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped: its weights bear the same names either way."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner
