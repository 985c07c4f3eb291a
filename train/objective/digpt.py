"""The D-iGPT objective (paper, sections 3.2 and 3.3): predict the next and the present clusters of the target.

Shapes: B batch; K clusters of S patches; N = (K-1)*S + 1 encoder tokens, class token LAST; C encoder width; D decoder
width; S_t target tokens per cluster; W width of a prediction (teacher width, p*p*3, codebook size).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.encoder import sincos_2d
from digpt.errors import ConfigError
from train.objective.base import ObjectiveOutput, Paradigm
from train.objective.clusters import ClusterLayout, check_arrangement
from train.objective.decoders import Decoder, DirectHead, LastProjection, TapProjection
from train.objective.losses import GridResize
from train.objective.masks import block_causal_mask
from train.objective.spaces import TargetSpace
from train.objective.stack import embed_visible, run_encoder

Fidelity = Literal["fixed", "official", "paper"]


@dataclass(frozen=True)
class DigptConfig:
    """Configuration of the objective; the encoder and the teacher bring their own grids and widths.

    Attributes:
        fidelity: ``fixed`` (default), ``official`` (the released code, shared tap norm) or ``paper`` (its text).
        cluster_grid: rows and columns of clusters; must divide the patch grid and the teacher grid.
        taps: 1-based encoder blocks the decoders read; empty: depth x (1/2, 2/3, 5/6, 1), rounded.
    """

    fidelity: Fidelity = "fixed"
    cluster_grid: tuple[int, int] = (2, 2)
    taps: tuple[int, ...] = ()
    decoder_width: int = 1024  # of both decoders
    decoder_heads: int = 32  # attention heads of each block
    decoder_depth: int = 2  # blocks of each decoder
    mlp_ratio: float = 4.0  # hidden width of their MLPs, by decoder_width
    gen_weight: float = 1.0  # of the generative loss
    dis_weight: float = 1.0  # of the discriminative loss
    norm_eps: float = 1e-6  # of the decoders' layer norms
    tap_norm_eps: float = 1e-5  # of the norms of the tapped blocks

    def __post_init__(self) -> None:
        if self.fidelity not in get_args(Fidelity):
            raise ConfigError(f"fidelity={self.fidelity!r} is unknown; valid: {', '.join(get_args(Fidelity))}.")
        if self.decoder_width % self.decoder_heads:
            raise ConfigError(f"decoder_heads={self.decoder_heads} does not divide decoder_width={self.decoder_width}.")
        if self.decoder_depth < 1:
            raise ConfigError(f"decoder_depth={self.decoder_depth} must be at least 1.")

    @property
    def class_token_std(self) -> float:
        """Std of the encoder's initial class token (``digpt.encoder.build_encoder``)."""
        return 0.02 if self.fidelity == "fixed" else 0.0


def tap_blocks(config: DigptConfig, depth: int) -> tuple[int, ...]:
    """The 1-based encoder blocks to tap: (6, 8, 10, 12) of 12, (12, 16, 20, 24) of 24; the last in ``paper``.

    Raises:
        ConfigError: taps are not distinct, ascending and within the encoder, or leave blocks untrained.
    """
    if config.fidelity == "paper":
        if config.taps:
            raise ConfigError("fidelity='paper' reads the last block only: leave taps empty.")
        return (depth,)
    taps = config.taps or tuple(round(depth * sixths / 6) for sixths in (3, 4, 5, 6))
    if list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] > depth:
        raise ConfigError(
            f"taps={taps} are not distinct ascending blocks of 1..{depth}; name them, for example "
            f"taps={tuple(range(1, depth + 1))[-4:]}."
        )
    if taps[-1] != depth:
        message = f"taps={taps} end before the last block: blocks {taps[-1] + 1}..{depth} would get no gradient."
        if config.fidelity == "fixed":
            raise ConfigError(f"{message} End them with {depth}.")
        warnings.warn(message, stacklevel=3)
    return taps


class DigptObjective(Paradigm):
    """Generative and discriminative decoders over a block-causal encoder of the first K-1 permuted clusters.

    Both decoders append a class query; it has a loss only where the target brings a class token.
    """

    branches: ClassVar[tuple[str, ...]] = ("gen", "dis")
    direct: ClassVar[tuple[str, ...]] = ()  # branches that distil straight from the encoder output
    positions: Tensor
    mask: Tensor

    def __init__(self, encoder: VisionTransformer, config: DigptConfig, space: TargetSpace) -> None:
        super().__init__(encoder, space)
        grid, target_grid = encoder.patch_embed.grid_size, (space.grid[0], space.grid[1])
        space.check_grid(grid)
        check_arrangement(config.cluster_grid, {"patch grid": grid, "teacher grid": target_grid})
        self.config = config
        self.layout = ClusterLayout(grid, config.cluster_grid)
        self.teacher_layout = ClusterLayout(target_grid, config.cluster_grid, "teacher grid")
        self.taps = tap_blocks(config, len(encoder.blocks))
        for branch in self.branches:
            self.add_module(branch, self._make_branch(branch))
        self.resize = GridResize(self.layout.cluster_shape, self.teacher_layout.cluster_shape)
        self.baseline = space.baseline()
        table = sincos_2d(config.decoder_width, grid[0], grid[1], class_token=False)
        self.register_buffer("positions", self.layout.to_clusters(table[None])[0], persistent=False)  # [K, S, D]
        self.register_buffer("mask", block_causal_mask(self.layout.count - 1, self.layout.size), persistent=False)

    def _make_branch(self, branch: str) -> nn.Module:
        config, width, paper = self.config, self.encoder.embed_dim, self.config.fidelity == "paper"
        if branch in self.direct:
            return DirectHead(width, self.space.width)
        dim, depth, eps = config.decoder_width, config.decoder_depth, config.tap_norm_eps
        memory: TapProjection | LastProjection
        if paper:
            memory = LastProjection(width, dim, depth, eps)
        else:
            memory = TapProjection(width, len(self.taps), dim, depth, eps, config.fidelity == "official")
        heads, out, ratio = config.decoder_heads, self.space.width, config.mlp_ratio
        return Decoder(memory, dim, heads, depth, out, ratio, config.norm_eps, self_attention=not paper)

    @property
    def units(self) -> int:
        """K, the number of clusters."""
        return self.layout.count

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        permutation = self._order(images, permutation, generator)
        patches, class_target = self._ordered_targets(targets, permutation)
        predictions = self.predict(images, permutation)
        losses, steps, baselines, step_baselines = {}, {}, {}, {}
        clusters = self.space.summary(patches)  # [B, K, .]
        class_token = None if class_target is None else self.space.summary(class_target[:, None])  # [B, .]
        self._update_baseline(clusters, class_token)
        cluster_baseline = self.baseline(clusters)  # [B, K]
        class_baseline = None if class_token is None else self.baseline(class_token)  # [B]
        for branch, prediction in predictions.items():
            predicted = slice(1, None) if branch == "gen" else slice(None, -1)  # which permuted clusters
            step, class_loss = self._token_losses(prediction, patches[:, predicted], class_target)
            losses[branch] = self._combine(step, class_loss)
            steps[branch] = step.detach().mean(0)
            baselines[branch] = self._combine(cluster_baseline[:, predicted], class_baseline)
            step_baselines[branch] = cluster_baseline[:, predicted].mean(0)
        weights = {"gen": self.config.gen_weight, "dis": self.config.dis_weight}
        loss = torch.stack([losses[branch] * weights[branch] for branch in losses]).sum()
        detached = {branch: value.detach() for branch, value in losses.items()}
        kept = predictions if return_predictions else None
        return ObjectiveOutput(loss, detached, baselines, steps, step_baselines, kept)

    def predict(self, images: Tensor, permutation: Tensor) -> dict[str, Tensor]:
        """Raw predictions ``[B,N,W]`` by branch, class token last, on the student's grid.

        Position i of ``gen`` predicts permuted cluster i+1 from clusters up to i, of ``dis`` cluster i itself.
        """
        taps = self.encode(images, permutation[:, :-1])
        ordered = self.positions[permutation]  # [B, K, S, D]
        predictions = {}
        for branch in self.branches:
            of_branch = ordered[:, 1:] if branch == "gen" else ordered[:, :-1]
            predictions[branch] = self.get_submodule(branch)(taps, of_branch.flatten(1, 2), self.mask)
        return predictions

    def encode(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Encode the visible clusters ``[B,K-1]`` only, block-causally -> tapped block outputs ``[B,N,C]``."""
        return run_encoder(
            self.encoder, embed_visible(self.encoder, images, self.layout, visible), self.mask, self.taps
        )

    @torch.no_grad()
    def _ordered_targets(self, targets: Tensor, permutation: Tensor) -> tuple[Tensor, Tensor | None]:
        """A batch of targets -> patches ``[B,K,S_t,.]`` in permuted order and the class target ``[B,.]``."""
        patches, class_target = self.space.split(targets)
        samples = torch.arange(len(targets), device=targets.device)[:, None]
        return self.teacher_layout.to_clusters(patches)[samples, permutation], class_target

    def _token_losses(
        self, prediction: Tensor, patches: Tensor, class_target: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Mean loss per causal step ``[B,K-1]`` and of the class token ``[B]``."""
        by_cluster = prediction[:, :-1].unflatten(1, (self.units - 1, -1))  # [B, K-1, S, W]
        steps = self.space.loss(self.resize(by_cluster), patches).mean(-1)
        return steps, None if class_target is None else self.space.loss(prediction[:, -1], class_target)

    def _combine(self, steps: Tensor, class_token: Tensor | None) -> Tensor:
        """Mean over the ``(K-1)*S_t (+ 1)`` tokens of all samples, from step means ``[B,K-1]`` and class ``[B]``."""
        if class_token is None:
            return steps.mean()
        size = self.teacher_layout.size
        return ((steps.sum(1) * size + class_token) / (steps.shape[1] * size + 1)).mean()

    def _update_baseline(self, clusters: Tensor, class_token: Tensor | None) -> None:
        """Fold in the mean target of an average loss token: each cluster is predicted equally often."""
        if not self.training:
            return
        mean = clusters.mean((0, 1))
        if class_token is not None:
            count = (self.units - 1) * self.teacher_layout.size
            mean = (mean * count + class_token.mean(0)) / (count + 1)
        self.baseline.update(mean)

    def no_weight_decay(self) -> set[str]:
        if self.config.fidelity != "fixed":
            return set()
        return {"encoder.cls_token", *(f"{b}.query" for b in self.branches if b not in self.direct)}


class GenObjective(DigptObjective):
    """The Gen decoder alone: our own extra row beside the paper's Table 9; on pixels, the paper's iGPT (Table 5)."""

    branches = ("gen",)


class GenFdObjective(DigptObjective):
    """Gen decoder plus feature distillation straight on the encoder output of the visible clusters (Table 9)."""

    branches = ("gen", "dis")
    direct = ("dis",)
