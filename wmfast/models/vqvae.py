"""The seeds' VQ-VAE: 84 x 64 RGB to a 21 x 16 grid of codes and back.

    encoder    conv3 3->C, [conv4 stride 2, GroupNorm(8), GELU] C->2C->4C, residual blocks, conv1
    quantizer  nearest code, straight-through gradient, moving-average codebook, commitment loss
    decoder    conv1, residual blocks, [nearest x2, conv3, GroupNorm(8), GELU] 4C->2C->C, conv3,
               tanh

C = 64 and codes of 256 in the seeds. Upsampling by nearest neighbour leaves no checkerboard. The
weights are channels_last: five times faster on a CPU.

Dimension legend: b batch, c channels, h, w pixels or grid, k tokens of a frame, n latent vectors,
v codes, d code width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wmfast.config import TokenizerConfig
from wmfast.kernels import nearest_code
from wmfast.models.ema_codebook import EmaCodebook
from wmfast.models.foreground import foreground_weights, median_frame
from wmfast.models.kmeans import kmeans
from wmfast.models.tokenizer_interface import Tokenizer
from wmfast.types import GRID_HW, Metrics

_GROUPS = 8
_KMEANS_FRAMES = 128
_KMEANS_LATENTS = 1 << 14
_KMEANS_ROUNDS = 10


class VQOutput(NamedTuple):
    """What a pass through the VQ-VAE gives."""

    reconstruction_bchw: Tensor  # (B, 3, 84, 64) in [-1, 1]
    tokens_bhw: Tensor  # int64 (B, 21, 16)
    commitment: Tensor  # scalar: mean squared distance from the latents to their codes
    usage_v: Tensor  # float32 (V,): latents of this batch per code


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(_GROUPS, channels), nn.GELU())


class ResidualBlock(nn.Module):
    """x + conv3(act(norm(conv3(act(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        out_bchw: Tensor = x_bchw + self.branch(x_bchw)
        return out_bchw


class VQVAE(Tokenizer):
    """Convolutional autoencoder with a discrete bottleneck (van den Oord et al. 2017)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config, config.code_dim)
        c, dim, blocks = config.channels, config.code_dim, config.residual_blocks
        if c % _GROUPS:
            raise ValueError(f"channels = {c}: must be a multiple of {_GROUPS}")
        self.commitment_weight = config.commitment
        self.averages = EmaCodebook(
            config.codebook_size, dim, config.ema_decay, config.dead_code_threshold
        )
        self.encoder = nn.Sequential(
            nn.Conv2d(3, c, 3, padding=1),
            nn.Conv2d(c, 2 * c, 4, stride=2, padding=1),
            _norm(2 * c),
            nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1),
            _norm(4 * c),
            *(ResidualBlock(4 * c) for _ in range(blocks)),
            nn.Conv2d(4 * c, dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, 4 * c, 1),
            *(ResidualBlock(4 * c) for _ in range(blocks)),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4 * c, 2 * c, 3, padding=1),
            _norm(2 * c),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * c, c, 3, padding=1),
            _norm(c),
            nn.Conv2d(c, 3, 3, padding=1),
            nn.Tanh(),
        )
        nn.init.normal_(self.codes, std=dim**-0.5)
        self.averages.restart(self.codes)
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                weight = convolution.weight
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images_bchw: Tensor) -> VQOutput:
        """Reconstruct (B, 3, 84, 64) images in [-1, 1]; in train mode the codebook follows."""
        return self._quantize_and_decode(self.encoder(images_bchw))

    def _quantize_and_decode(self, latent_bdhw: Tensor) -> VQOutput:
        with torch.autocast(latent_bdhw.device.type, enabled=False):
            latent_bhwd = latent_bdhw.float().permute(0, 2, 3, 1)
            latent_nd = latent_bhwd.flatten(0, 2)
            index_n = nearest_code(latent_nd.detach(), self.codes)
            code_nd = self.codes[index_n]  # a copy: the codes move below
            commitment = (latent_nd - code_nd).square().mean()
            usage_v = torch.zeros_like(self.averages.count)
            if self.training:
                usage_v = self.averages.update(self.codes, latent_nd.detach(), index_n)
            # straight-through: the value is the code's, the gradient the latent's
            quantized_nd = latent_nd + (code_nd - latent_nd).detach()
            quantized_bdhw = quantized_nd.view(latent_bhwd.shape).permute(0, 3, 1, 2)
        tokens_bhw = index_n.view(latent_bhwd.shape[:3])
        return VQOutput(self.decoder(quantized_bdhw), tokens_bhw, commitment, usage_v)

    @torch.no_grad()
    def initialise(self, frames_bhwc: Tensor, generator: torch.Generator) -> None:
        """Take the background from uint8 (N, 84, 64, 3) frames, the codes by k-means of latents."""
        self.median.copy_(median_frame(frames_bhwc))
        rows = torch.randint(len(frames_bhwc), (_KMEANS_FRAMES,), generator=generator)
        latent_bdhw = torch.cat([self.encoder(to_images(frames_bhwc[r])) for r in rows.split(8)])
        latent_nd = latent_bdhw.permute(0, 2, 3, 1).flatten(0, 2).float()
        pick = torch.randperm(len(latent_nd), generator=generator)[:_KMEANS_LATENTS]
        latent_nd = latent_nd[pick.to(latent_nd.device)]
        weight_n = torch.ones_like(latent_nd[:, 0])
        self.codes.copy_(
            kmeans(latent_nd, weight_n, self.vocab_size, generator, rounds=_KMEANS_ROUNDS)
        )
        self.averages.restart(self.codes)

    @torch.no_grad()
    def encode(self, frames_bhwc: Tensor) -> Tensor:
        """Uint8 (B, 84, 64, 3) to tokens, int64 (B, 336)."""
        return nearest_code(self._latents(frames_bhwc), self.codes)

    @torch.no_grad()
    def vectors(self, frames_bhwc: Tensor) -> Tensor:
        """The encoder's outputs, float32 (B * 336, D)."""
        return self._latents(frames_bhwc).flatten(0, 1)

    def points(self) -> Tensor:
        """The codes, float32 (V, D)."""
        return self.codes

    @torch.no_grad()
    def move_codes(self, points_vd: Tensor, which_v: Tensor) -> None:
        """Set the codes of which bool (V,) says so to float32 (V, D)."""
        self.codes.copy_(torch.where(which_v[:, None], points_vd, self.codes))
        self.version += 1

    def _latents(self, frames_bhwc: Tensor) -> Tensor:
        latent_bdhw: Tensor = self.encoder(to_images(frames_bhwc)).float()
        return latent_bdhw.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def decode(self, tokens_bk: Tensor) -> Tensor:
        """Tokens, int64 (B, 336), to uint8 (B, 84, 64, 3)."""
        code_bdhw = self.codes[tokens_bk].unflatten(1, GRID_HW).permute(0, 3, 1, 2)
        images_bchw: Tensor = self.decoder(code_bdhw).float()
        frames_bchw = ((images_bchw + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return frames_bchw.permute(0, 2, 3, 1).contiguous()

    def loss(self, frames_bhwc: Tensor) -> tuple[Tensor, Metrics]:
        """Foreground-weighted reconstruction and commitment on uint8 (B, 84, 64, 3) frames."""
        images_bchw = to_images(frames_bhwc)
        output = self(images_bchw)
        weight_bhw = foreground_weights(frames_bhwc, self.median, self.foreground_weight)
        error_bchw = output.reconstruction_bchw.float() - images_bchw
        penalty_bhw = (error_bchw.abs() + error_bchw.square()).mean(1)
        reconstruction = (weight_bhw * penalty_bhw).sum() / weight_bhw.sum()
        loss = reconstruction + self.commitment_weight * output.commitment
        share_v = output.usage_v / output.usage_v.sum().clamp(min=1)
        metrics = {
            "reconstruction": reconstruction.detach(),
            "commitment": output.commitment.detach(),
            "perplexity": torch.special.entr(share_v).sum().exp(),
        }
        return loss, metrics


def to_images(frames_bhwc: Tensor) -> Tensor:
    """Uint8 (B, 84, 64, 3) to float32 (B, 3, 84, 64) in [-1, 1], channels_last in memory."""
    return frames_bhwc.permute(0, 3, 1, 2).float() / 127.5 - 1
