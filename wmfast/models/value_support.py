"""Values as distributions over bins: a support, and what a target becomes on it.

    c51        the next state's bins, moved and shrunk by the return, split between the two nearest
               (Bellemare et al. 2017, the projection of eq. 7)
    hl_gauss   a Gaussian around the scalar target, its mass in each bin (Imani & White 2018;
               Farebrother et al. 2024, sigma 0.75 bins)

Z bins; other dimensions in ``wmfast.types``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SIGMA_BINS = 0.75  # of HL-Gauss, in bins: the best of Farebrother et al. 2024, figure 10


class Support(nn.Module):
    """``bins`` values spread evenly over -limit .. limit, as atoms or as the middles of bins."""

    atom_z: Tensor  # float32 (Z,), rising

    def __init__(self, bins: int, limit: float, *, at_edges: bool) -> None:
        """``at_edges``: the outermost values lie at the limits (c51), else half a bin inside."""
        super().__init__()
        if bins < 2 or not (limit > 0 and math.isfinite(limit)):
            raise ValueError(f"bins = {bins}, limit = {limit}: at least 2, and positive")
        self.limit = limit
        self.width = 2 * limit / (bins - 1 if at_edges else bins)
        outermost = limit if at_edges else limit - self.width / 2
        atom_z = torch.linspace(-outermost, outermost, bins)
        self.register_buffer("atom_z", atom_z, persistent=False)

    def expected(self, logits: Tensor) -> Tensor:
        """Logits (..., Z) to expected values float32 (...)."""
        # No matrix product: autocast would make its terms bfloat16, 0.03 apart at the value 5.
        return (logits.float().softmax(-1) * self.atom_z).sum(-1)

    def project(self, value_bz: Tensor, probability_bz: Tensor) -> Tensor:
        """Mass at any values, onto the atoms: float32 (B, Z), each row sums to that of the mass.

        A value between two atoms gives each the share of its nearness; one beyond the limits goes
        to the outermost atom.
        """
        at_bz = (value_bz.clamp(-self.limit, self.limit) - self.atom_z[0]) / self.width
        nearness_bzz = 1 - (at_bz[:, :, None] - self._numbers()).abs()
        return (probability_bz[:, :, None] * nearness_bzz.clamp(min=0)).sum(dim=1)

    def gaussian(self, value_b: Tensor) -> Tensor:
        """The mass of a Gaussian around each value in each bin, float32 (B, Z), rows sum to 1.

        Values beyond the limits count as the limits; what the Gaussian has outside is left out, so
        values within a few bins of a limit come out too small, and bootstrapping adds that up: with
        51 bins to 10, returns of 3 steps and gamma 0.997, a true 9.0 settles at 8.97, 9.9 at 9.26.
        """
        value_b1 = value_b.clamp(-self.limit, self.limit)[:, None]
        edge_e = self.width * torch.cat([self._numbers(), self._numbers()[-1:] + 1]) - self.limit
        below_be: Tensor = torch.special.ndtr((edge_e - value_b1) / (_SIGMA_BINS * self.width))
        mass_bz = below_be[:, 1:] - below_be[:, :-1]
        return mass_bz / (below_be[:, -1:] - below_be[:, :1])

    def _numbers(self) -> Tensor:
        return torch.arange(len(self.atom_z), device=self.atom_z.device)
