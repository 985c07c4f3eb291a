"""A small discrete tokenizer of our own: a convolutional autoencoder with a vector-quantised bottleneck.

The codebook follows the encoder by moving averages (VQ-VAE, van den Oord et al. 2017, appendix A.1). Features are
centred and scaled by running statistics, else a fresh encoder's would all point the same way; then they are made unit
vectors, as the codes are. Codes that fall out of use start again at a feature of the present batch.

Shapes: B batch, h x w codes (one per patch), C code width, V codes in the codebook.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from digpt.artifact import atomic_write, canonical_json, fingerprint
from digpt.errors import CheckpointError, ConfigError
from train.keyed import keyed_bits
from train.objective.losses import without_autocast

FORMAT = "digpt-tokenizer"
VERSION = 1
RESTART = 101  # the use of keyed bits, apart from those of train.keyed


@dataclass(frozen=True)
class VqConfig:
    """Sizes of the autoencoder and rules of its codebook.

    Attributes:
        patch_size: pixels per code, a power of two.
        width: channels after the first convolution, of stride 4; doubled at each halving, four times at most.
        decay: of the moving averages that the codebook follows.
        commitment: weight of the loss that draws features to their codes.
        restart_below: a code used less often than this, in features per batch on the moving average, starts again.
    """

    patch_size: int = 16
    codebook_size: int = 512  # number of codes
    code_width: int = 32  # channels of a code
    width: int = 48
    decay: float = 0.99
    commitment: float = 0.25
    restart_below: float = 0.05

    def __post_init__(self) -> None:
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ConfigError(f"patch_size={self.patch_size} must be a power of two, 2 or more.")
        for name in ("codebook_size", "code_width", "width"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 2.")
        if not 0 < self.decay < 1:
            raise ConfigError(f"decay={self.decay} must lie between 0 and 1.")

    @property
    def strides(self) -> tuple[int, ...]:
        """What each stage divides the image by: 4 (2 where the patch is no larger), then 2 each."""
        first = min(self.patch_size, 4)
        return (first, *[2] * (self.patch_size // first).bit_length())[:-1]

    def channels(self, stage: int) -> int:
        """Channels after ``stage``, counted from 0."""
        return self.width * min(2**stage, 4)


class ResidualBlock(nn.Module):
    """Norm, 3x3, norm, 3x3, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = next(n for n in (8, 4, 2, 1) if channels % n == 0)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class RunningScale(nn.Module):
    """Centre and scale features by moving averages of their mean and mean square; no gradient reaches these."""

    DECAY = 0.9  # the encoder moves fast at first

    mean: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, raw: Tensor) -> None:
        """Fold in the raw features ``[M,C]`` of all processes."""
        self.updates += 1
        weight = _weight(self.DECAY, self.updates)
        self.mean.lerp_(raw.mean(0), weight)
        self.square.lerp_(raw.square().mean(0), weight)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw features ``[...,C]`` -> unit features."""
        deviation = (self.square - self.mean.square()).clamp_min(1e-12).sqrt()
        return F.normalize((raw - self.mean) / deviation, dim=-1)


def _weight(decay: float, updates: Tensor) -> Tensor:
    """Weight of the newest value in a bias-corrected moving average: 1 at the first update, ``1 - decay`` at last."""
    return ((1 - decay) / (1 - decay ** updates.double())).float()


class Codebook(nn.Module):
    """V unit codes that follow the mean of the features nearest to them; no gradient reaches them."""

    codes: Tensor
    usage: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, config: VqConfig, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        generator = torch.Generator().manual_seed(seed)
        codes = F.normalize(torch.randn(config.codebook_size, config.code_width, generator=generator), dim=-1)
        self.register_buffer("codes", codes)
        self.register_buffer("usage", torch.zeros(config.codebook_size))  # features per batch, moving average
        self.register_buffer("sums", torch.zeros_like(codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def nearest(self, features: Tensor) -> Tensor:
        """Unit features ``[M,C]`` -> int64 ``[M]``."""
        return (features @ self.codes.T).argmax(-1)

    @torch.no_grad()
    def follow(self, features: Tensor) -> None:
        """Move the codes after a batch of unit features ``[M,C]`` of all processes; restart codes out of use."""
        chosen = self.nearest(features)
        counts = torch.zeros_like(self.usage).index_add_(0, chosen, torch.ones_like(chosen, dtype=self.usage.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, features)
        fresh = features[self._draw(len(features)).to(features.device)]
        self.updates += 1
        weight = _weight(self.config.decay, self.updates)
        self.usage.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        unused = self.usage < self.config.restart_below
        self.codes.copy_(torch.where(unused[:, None], fresh, F.normalize(self.sums, dim=-1)))
        # a code that starts again counts as chosen by one feature: about 1/(1 - decay) updates of grace
        self.usage.masked_fill_(unused, 1.0)
        self.sums.copy_(torch.where(unused[:, None], fresh, self.sums))

    def _draw(self, size: int) -> Tensor:
        """One index below ``size`` per code, a function of (seed, number of updates) alone."""
        update = np.array([int(self.updates)], dtype=np.int64)
        bits = keyed_bits(self.seed, update, np.zeros(1, np.int64), self.config.codebook_size, RESTART)[0]
        return torch.from_numpy((bits % np.uint64(size)).astype(np.int64))


def _of_all_processes(features: Tensor) -> Tensor:
    """Features ``[M,C]`` of this process -> those of all, in the order of one process with the whole batch."""
    if not (dist.is_available() and dist.is_initialized()):
        return features
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.contiguous())
    return torch.cat(parts)


class VqTokenizer(nn.Module):
    """Encoder, codebook and decoder. ``forward`` trains; ``codes`` is what a target needs."""

    def __init__(self, config: VqConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or VqConfig()
        self.patch_size, self.codebook_size = config.patch_size, config.codebook_size
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for stage, stride in enumerate(config.strides):
            before, after = config.channels(stage - 1) if stage else 3, config.channels(stage)
            down += [nn.Conv2d(before, after, stride, stride=stride), ResidualBlock(after)]
            up = [ResidualBlock(after), nn.ConvTranspose2d(after, before, stride, stride=stride), *up]
        top = config.channels(len(config.strides) - 1)
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(top, config.code_width, 1))
        self.scale = RunningScale(config.code_width)
        self.codebook = Codebook(config, seed)
        self.decoder = nn.Sequential(nn.Conv2d(config.code_width, top, 1), *up)
        self.fingerprint = ""
        self.provenance: dict[str, Any] = {}

    def _raw(self, images01: Tensor) -> Tensor:
        """float ``[B,3,h*p,w*p]`` in [0, 1] -> features ``[B,h,w,C]`` in float32, as the encoder gives them."""
        return self.encoder(images01 * 2 - 1).float().permute(0, 2, 3, 1)

    def features(self, images01: Tensor) -> Tensor:
        """float ``[B,3,h*p,w*p]`` in [0, 1] -> unit features ``[B,h,w,C]`` in float32."""
        return self.scale(self._raw(images01))

    @torch.no_grad()
    def codes(self, images01: Tensor) -> Tensor:
        """float ``[B,3,h*p,w*p]`` in [0, 1] -> int64 ``[B, h*w]`` in raster order."""
        features = self.features(images01)
        return self.codebook.nearest(features.flatten(0, 2)).view(len(images01), -1)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """int64 ``[B, h*w]`` on ``grid`` = (h, w) -> images ``[B,3,h*p,w*p]``, about [0, 1], not clamped."""
        quantised = self.codebook.codes[codes].unflatten(1, grid)
        return self._draw(quantised)

    def _draw(self, quantised: Tensor) -> Tensor:
        return (self.decoder(quantised.permute(0, 3, 1, 2)) + 1) / 2

    def forward(self, images01: Tensor) -> dict[str, Tensor]:
        """Scalars ``loss`` (with gradient), ``reconstruction``, ``commitment``, ``perplexity`` (codes in use).

        In training mode the codebook follows the batch.
        """
        raw = self._raw(images01)
        with without_autocast(images01.device):
            everywhere = _of_all_processes(raw.detach().flatten(0, 2)) if self.training else None
            if everywhere is not None:
                self.scale.follow(everywhere)
            features = self.scale(raw)
            chosen = self.codebook.nearest(features.detach().flatten(0, 2))
            nearest = self.codebook.codes[chosen].view_as(features)
            commitment = (features - nearest).square().sum(-1).mean()
            quantised = features + (nearest - features).detach()  # gradients pass straight through
            if everywhere is not None:
                self.codebook.follow(self.scale(everywhere))
        reconstruction = (self._draw(quantised).float() - images01).square().mean()
        share = torch.bincount(chosen, minlength=self.codebook_size).float() / len(chosen)
        perplexity = torch.special.entr(share).sum().exp()
        loss = reconstruction + self.config.commitment * commitment
        return {
            "loss": loss,
            "reconstruction": reconstruction.detach(),
            "commitment": commitment.detach(),
            "perplexity": perplexity,
        }


# ------------------------------------------------------------------------------------------------------------- file


def tokenizer_fingerprint(state: Mapping[str, Tensor], config: VqConfig) -> str:
    """``sha256:<64 hex>`` over encoder, running statistics, codebook and configuration: what decides the codes."""
    kept = {
        name: value
        for name, value in state.items()
        if name.startswith(("encoder.", "scale.")) or name == "codebook.codes"
    }
    return fingerprint({"encoder": kept}, {"architecture": FORMAT, "encoder": asdict(config)})


@dataclass
class TokenizerCheckpoint:
    """A trained tokenizer as a file: ``{format, version, config, weights, provenance}``, for ``weights_only=True``."""

    config: VqConfig
    weights: dict[str, Tensor]
    provenance: dict[str, Any]

    def write(self, path: str | Path, dtype: str = "float32") -> str:
        """Write atomically, floating-point weights as ``dtype``; returns the fingerprint of what was stored."""
        stored = {
            name: value.detach().cpu().to(getattr(torch, dtype) if value.is_floating_point() else value.dtype).clone()
            for name, value in self.weights.items()
        }
        document = {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(self.config),
            "weights": stored,
            "provenance": json.loads(canonical_json(self.provenance)),
        }
        atomic_write(path, lambda file: torch.save(document, file))
        return tokenizer_fingerprint(stored, self.config)


def tokenizer_from_document(document: dict[str, Any], path: Path) -> VqTokenizer:
    """The tokenizer of a loaded file.

    Raises:
        CheckpointError: a newer version, or a configuration or weights that do not fit.
    """
    version = document.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{path} has tokenizer version {version}; this digpt reads {VERSION}. Upgrade digpt, or train it again."
        )
    try:
        model = VqTokenizer(VqConfig(**document["config"]))
        model.load_state_dict(document["weights"], strict=True)
    except (ConfigError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged or was edited ({reason}). Train the tokenizer again.") from None
    model.fingerprint = tokenizer_fingerprint(model.state_dict(), model.config)
    model.provenance = dict(document.get("provenance", {}))
    return model.eval()
