"""The seam between the trainer and a pretraining objective: what it takes, what it returns, what target it wants.

Nothing in a paradigm is random but the ``permutation`` it is given, and nothing depends on how many processes train.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.errors import ConfigError
from train.objective.clusters import random_permutation
from train.objective.spaces import TargetSpace
from train.objective.stack import BlockStack


@dataclass(frozen=True)
class ObjectiveOutput:
    """One forward pass. ``losses`` and ``baselines`` hold scalars by branch (``gen``, ``mae``, ...);
    ``steps`` and ``step_baselines`` hold ``[K-1]`` means over the patch tokens of each causal step (class excluded).

    Only ``loss`` carries a gradient; everything else is detached (predictions, when asked for, are not).
    """

    loss: Tensor
    losses: dict[str, Tensor]
    baselines: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Tensor] = field(default_factory=dict)
    step_baselines: dict[str, Tensor] = field(default_factory=dict)
    predictions: dict[str, Tensor] | None = None

    def metrics(self) -> dict[str, Tensor]:
        """Flat scalars for a log: ``loss``, ``gen_loss``, ``gen_baseline``, ``gen_step1_loss``, ... (no host sync)."""
        flat = {"loss": self.loss.detach()}
        flat.update({f"{name}_loss": value for name, value in self.losses.items()})
        flat.update({f"{name}_baseline": value for name, value in self.baselines.items()})
        for suffix, table in (("loss", self.steps), ("baseline", self.step_baselines)):
            for name, values in table.items():
                flat.update({f"{name}_step{i + 1}_{suffix}": value for i, value in enumerate(values.unbind())})
        return flat


class Paradigm(nn.Module, ABC):
    """A pretraining objective around one encoder. Subclasses register in ``train.objective.PARADIGMS``.

    Every trainable parameter gets a gradient in every step, so data-parallel wrappers need not look for unused ones.
    """

    encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer, space: TargetSpace) -> None:
        super().__init__()
        _check_encoder(encoder)
        self.encoder = encoder
        self.space = space
        assert encoder.pos_embed is not None
        encoder.pos_embed.requires_grad_(False)  # positions are fixed while pretraining

    @property
    def units(self) -> int:
        """How many units a permutation orders: clusters, patches, or 1 for an objective without an order."""
        return 1

    def blocks(self) -> list[nn.Module]:
        """The repeated transformer blocks, encoder's then decoders': what is compiled and sharded one by one."""
        return [*self.encoder.blocks, *(block for stack in self._stacks() for block in stack.blocks)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block of encoder and decoders in the backward pass instead of storing its activations."""
        self.encoder.set_grad_checkpointing(enable)
        for stack in self._stacks():
            stack.grad_checkpointing = enable

    def _stacks(self) -> list[BlockStack]:
        return [module for module in self.modules() if isinstance(module, BlockStack)]

    def _order(self, images: Tensor, permutation: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The permutation given, checked, or one drawn from ``generator``: int64 ``[B, units]``."""
        if permutation is None:
            return random_permutation(len(images), self.units, images.device, generator)
        if tuple(permutation.shape) != (len(images), self.units):
            raise ConfigError(
                f"The permutation {tuple(permutation.shape)} is not [B, units] = {(len(images), self.units)}."
            )
        return permutation

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        """Compute the loss.

        Args:
            images: ``[B,3,h,w]``, normalised with the student's mean and std.
            targets: what a target of ``space.kind`` returns: teacher tokens ``[B, 1+N_t, T]``, class token first;
                pixels ``[B, N, p*p*3]``; codes int64 ``[B, N]``.
            permutation: int64 ``[B, units]``, the order of the units per sample; drawn from ``generator`` if None.
            generator: used only where no permutation is given.
            return_predictions: also return the raw predictions, before resizing and normalising.
        """

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond the usual biases and norms."""
        return set()

    def decoder_state(self) -> dict[str, Tensor]:
        """Everything but the encoder: what a checkpoint stores under ``weights.decoders``."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}

    def load_decoder_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`decoder_state`, strict in both directions."""
        wanted, given = set(self.decoder_state()), set(state)
        if wanted != given:
            raise ConfigError(
                f"Decoder weights do not fit {type(self).__name__}: missing {sorted(wanted - given)[:5]}, "
                f"unexpected {sorted(given - wanted)[:5]}."
            )
        self.load_state_dict(state, strict=False)


def _check_encoder(encoder: VisionTransformer) -> None:
    plain = encoder.cls_token is not None and encoder.num_prefix_tokens == 1 and not encoder.no_embed_class
    plain = plain and encoder.pos_embed is not None and isinstance(encoder.norm_pre, nn.Identity)
    plain = plain and isinstance(encoder.norm, nn.Identity) and isinstance(encoder.fc_norm, nn.Identity)
    if not plain:
        raise ConfigError(
            "Pretraining needs a plain ViT: class_token=True, no register tokens, learned position slots including "
            "the class token, final_norm=False (see digpt.encoder.encoder_config)."
        )
