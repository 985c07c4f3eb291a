"""Contrastive tuning on image-text pairs from disk, with an OpenCLIP text tower (paper, Table 4).

``train.zeroshot`` runs this for any ``--data`` but the bundled set: ``wds:SHARDS`` or ``csv:FILE`` (docs/data.md). Both
towers are trained, the image tower from a D-iGPT encoder, the text tower from open_clip's weights (``--freeze-text``
leaves it as it is). The loss is open_clip's own, over the whole batch of all processes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import open_clip
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from digpt.data.pairs import open_pairs
from digpt.errors import CapabilityError, ConfigError
from digpt.model import TextTower
from digpt.source_open_clip import OpenClipTokenizer, text_tower_weights
from digpt.sources import load_model
from train.augment import normalise
from train.clock import Clock
from train.config import resolved
from train.cost import text_tower_cost, tuning_cost
from train.loader import PairTraining, PhotoBatch
from train.optim import decay_groups
from train.provenance import parent, provenance
from train.share import Share
from train.sources import loader
from train.starts import start_encoder
from train.targets import named_teacher
from train.task import Evaluation, group

if TYPE_CHECKING:
    from train.zeroshot import ZeroshotConfig

_TOWER_FIELDS = ("context_length", "vocab_size", "width", "heads", "layers")
_PROBES = ("a photo of a cat.", "two red apples on a table")


class PairsModule(nn.Module):
    """Image encoder (mean of the patch tokens, timm's ``fc_norm``), projection, text tower and temperature."""

    def __init__(self, encoder: VisionTransformer, text: TextTower, dim: int, logit_scale: float, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.text, self.frozen = encoder, text, frozen
        self.projection = nn.Linear(encoder.embed_dim, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=encoder.embed_dim**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]))  # FSDP2 shards no scalars
        text.requires_grad_(not frozen)

    def forward(self, normalised: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B,3,S,S]`` and ``[B,L]`` -> unit ``[B,D]`` twice, and the logit scale."""
        return self.embed_images(normalised), self.embed_texts(tokens), self.logit_scale.exp().squeeze()

    def embed_images(self, normalised: Tensor) -> Tensor:
        """Normalised ``[B,3,S,S]`` -> unit ``[B,D]``."""
        return F.normalize(self.projection(self.encoder(normalised)).float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B,L]`` -> unit ``[B,D]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return F.normalize(self.text(tokens).float(), dim=-1)


@dataclass(frozen=True)
class Text:
    """What is kept of an open_clip model: its text tower, and no vision tower."""

    tower: TextTower
    entry: dict[str, Any]  # ``text`` of a checkpoint's config
    tokenize: OpenClipTokenizer
    logit_scale: float
    parent: dict[str, Any]  # the model in the record of a checkpoint


def text_tower(spec: str) -> Text:
    """The text tower of an open_clip model.

    Raises:
        CapabilityError: a tower that is not open_clip's own ``TextTransformer`` (a Hugging Face one, SigLIP's, ...), or
            whose rebuilt form gives other numbers.
    """
    named = named_teacher(spec)
    model = load_model(named[0].spec(named[1]) if named else spec)
    text = model.config["text"]
    refusal = f"{spec} has no text tower that can be tuned here: name a CLIP or OpenCLIP model, as openclip-h."
    known = text is not None and text["tokenizer"].startswith("open_clip:") and "hf_model_name" not in text["tower"]
    if not known or model.config["architecture"] != "open_clip":
        raise CapabilityError(refusal)
    cfg = {**dataclasses.asdict(open_clip.CLIPTextCfg()), **text["tower"]}
    tower: dict[str, Any] = {name: cfg[name] for name in _TOWER_FIELDS}
    tower |= {"output_dim": model.config["encoder"]["embed_dim"]}
    tower |= {"quick_gelu": bool(model.config["encoder"].get("quick_gelu"))}
    rebuilt = TextTower(**tower)
    missing, unexpected = rebuilt.load_state_dict(text_tower_weights(model), strict=False)
    assert model.text is not None
    tokens = torch.from_numpy(model.text.tokenize(_PROBES))
    with torch.no_grad():
        same = (
            not missing
            and not unexpected
            and torch.allclose(rebuilt.eval()(tokens), model.text.module(tokens), atol=1e-4)
        )
    if not same:
        raise CapabilityError(refusal)
    return Text(
        rebuilt,
        {**text, "tower": tower},
        OpenClipTokenizer(text["tokenizer"].removeprefix("open_clip:"), tower["context_length"]),
        model.logit_scale or 14.3,
        parent("text", model.fingerprint, model.provenance),
    )


class PairsTask:
    """Both towers on image-text pairs."""

    name = "zeroshot"

    def __init__(self, config: ZeroshotConfig) -> None:
        torch.manual_seed(config.seed)
        source = open_pairs(config.data, cache=config.output, limit=config.limit)
        # opened now, so that a mistake shows before training and not after it
        self._validation = open_pairs(config.val_data, cache=config.output) if config.val_data else None
        self.data = PairTraining(source, config.seed, config.batch_size, config.crop, config.image_size, loader(config))
        self.config = config = resolved(config, len(self.data))
        text = text_tower(config.teacher)
        self.text, self.tokenize = text.entry, text.tokenize
        start = start_encoder(config.encoder, config.variant, config.image_size, config.depth)
        self.encoder_config, self.preprocess = start.config, start.preprocess
        self.parents = [text.parent, *start.parents]
        dim = self.text["tower"]["output_dim"]
        self.module = PairsModule(start.encoder, text.tower, dim, text.logit_scale, config.freeze_text)
        self.module.encoder.set_grad_checkpointing(config.checkpointing)
        self.module.text.set_grad_checkpointing(config.checkpointing)
        self._device = torch.device("cpu")
        self._loss = open_clip.ClipLoss()

    def to(self, device: torch.device) -> None:
        """Nothing lives outside the module."""
        self._device = device

    def blocks(self) -> list[nn.Module]:
        return [*self.module.encoder.blocks, *self.module.text.transformer.resblocks]

    def batches(self, first: int, share: Share) -> Iterator[list[PhotoBatch]]:
        if share.accumulate > 1:
            raise ConfigError("train.zeroshot contrasts within the whole batch: leave accumulate at 1.")
        self._loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, rank=share.rank, world_size=share.world)
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: PhotoBatch, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            assert batch.texts is not None
            tokens = torch.from_numpy(self.tokenize(batch.texts)).to(self._device)
            images = self._normalise(batch.to(self._device).images)
        with clock.part("encoder"):
            embedded, texts, scale = model(images, tokens)
            loss: Tensor = self._loss(embedded, texts, scale)
        return {"loss": loss, "scale": scale.detach()}

    def backward(self, loss: Tensor, clock: Clock) -> None:
        with clock.part("encoder"):
            loss.backward()

    def after_step(self) -> None:
        """Keep the temperature within CLIP's bound."""
        with torch.no_grad():
            self.module.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.preprocess.mean, self.preprocess.std)

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """Of the first thousand pairs of ``val_data``: how often an image's own caption is the nearest."""
        if self._validation is None:
            return {}
        images, texts, count = [], [], min(1000, len(self._validation))
        for start in range(0, count, 64):
            evaluation.check()
            pairs = [self._validation.read(index) for index in range(start, min(start + 64, count))]
            pixels = torch.stack([torch.from_numpy(self.preprocess(data)) for data, _ in pairs])
            float_pixels = pixels.to(evaluation.device).permute(0, 3, 1, 2) / 255
            images.append(self.module.embed_images(self._normalise(float_pixels)))
            tokens = torch.from_numpy(self.tokenize([caption for _, caption in pairs]))
            texts.append(self.module.embed_texts(tokens.to(evaluation.device)))
        nearest = (torch.cat(images) @ torch.cat(texts).T).argmax(1)
        return {"val_retrieval_top1": (nearest == torch.arange(count, device=nearest.device)).float().mean().item()}

    def best(self) -> str | None:
        return "val_retrieval_top1" if self.config.val_data else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        exempt = ("encoder.cls_token", "encoder.pos_embed", "logit_scale")
        text = ("text.positional_embedding", "text.token_embedding.weight")
        return decay_groups(self.module, self.config.weight_decay, (*exempt, *text))

    def flops_per_image(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        name = self.text["tokenizer"].removeprefix("open_clip:")
        text, width = text_tower_cost(name)
        image = tuning_cost(self.encoder_config, width, False, precision=self.config.precision).total
        return image + text.flops * (1 if self.config.freeze_text else 3)

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint, **{line["role"]: line["fingerprint"] for line in self.parents}}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint:
        text = {**self.text, "logit_scale": math.exp(state["logit_scale"].item()), "logit_bias": None}
        head = {"type": "projection", "in": self.module.encoder.embed_dim, "out": self.text["tower"]["output_dim"]}
        return Checkpoint(
            config={
                "architecture": "timm",
                "encoder": self.encoder_config,
                "preprocess": self.preprocess.to_dict(),
                "pooling": "avg",
                "head": head,
                "text": text,
                "labels": None,
                "objective": None,
            },
            weights={
                "encoder": group(state, "encoder"),
                "head": group(state, "projection"),
                "text": group(state, "text"),
            },
            provenance=provenance(self.name, self.config, self.data, self.parents, figures),
        )
