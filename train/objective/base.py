"""The seam between the trainer and a pretraining objective: what it takes, what it returns, what target it wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.errors import ConfigError

TargetKind = Literal["tokens", "pixels"]


@dataclass(frozen=True)
class ObjectiveOutput:
    """One forward pass. ``losses`` and ``baselines`` hold scalars by branch (``gen``, ``dis``, ``fd``);
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
    """A pretraining objective around one encoder. Subclasses register in ``train.objective.PARADIGMS``."""

    target: ClassVar[TargetKind]
    encoder: VisionTransformer

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        _check_encoder(encoder)
        self.encoder = encoder
        assert encoder.pos_embed is not None
        encoder.pos_embed.requires_grad_(False)  # positions are fixed while pretraining

    @property
    def clusters(self) -> int:
        """K, how many clusters a permutation orders; 1 for an objective without clusters."""
        return 1

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
            targets: for ``target == "tokens"`` teacher tokens ``[B, 1+N_t, T]``, class token first.
            permutation: int64 ``[B,K]``, the order of the clusters per sample; drawn from ``generator`` if None.
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
