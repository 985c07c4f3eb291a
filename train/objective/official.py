"""Read the authors' released pretraining weights into our modules, strictly in both directions.

Their names: ``ar_*`` is Gen, ``kd_*`` is Dis; ``*_enc_norm`` the tap norm (one module under four names), ``*_enc2dec``
the tap projection; ``decoder_pos_embed`` and ``mask`` are constants that we construct and therefore only compare.

The tap norm and projection are CROSSED: the golden outputs are reproduced only if Gen's blocks read the memory made by
``kd_enc_norm``/``kd_enc2dec`` and Dis's blocks that made by ``ar_enc_norm``/``ar_enc2dec`` (measured: with the names
taken at face value the predictions are unrelated, crossed they agree to 1e-5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from digpt.encoder import sincos_2d
from digpt.errors import CheckpointError, ConfigError
from train.objective.digpt import DigptObjective

# (their prefix, our branch) of the decoder proper, and of the memory it reads: crossed, see above.
BRANCHES = {"ar": "gen", "kd": "dis"}
MEMORY_BRANCHES = {"ar": "dis", "kd": "gen"}
PARTS = {"token": "query", "blocks": "blocks", "norm": "norm", "pred": "pred"}
MEMORY_PARTS = {"enc_norm": "memory.norms", "enc2dec": "memory.proj"}


def official_name(name: str) -> str:
    """Our name of an official parameter: ``ar_pred.bias`` -> ``gen.pred.bias``, ``ar_enc2dec.bias`` ->
    ``dis.memory.proj.bias`` (crossed), anything without a decoder's prefix -> ``encoder.*``."""
    match = re.fullmatch(r"(ar|kd)_([a-z0-9_]+)(\..+)?", name)
    if match and match[2] in MEMORY_PARTS:
        return f"{MEMORY_BRANCHES[match[1]]}.{MEMORY_PARTS[match[2]]}{match[3] or ''}"
    if match and match[2] in PARTS:
        return f"{BRANCHES[match[1]]}.{PARTS[match[2]]}{match[3] or ''}"
    return f"encoder.{name}"


def load_official_state(objective: DigptObjective, state: Mapping[str, Tensor]) -> None:
    """Load released weights into an ``official`` objective.

    Raises:
        ConfigError: the objective's fidelity is not ``official``.
        CheckpointError: missing or unexpected names, other shapes, tap norms that differ, or other constants.
    """
    if objective.config.fidelity != "official":
        raise ConfigError(f"The authors' weights need fidelity='official', not {objective.config.fidelity!r}.")
    weights = {name: value for name, value in state.items() if name not in ("mask", "decoder_pos_embed")}
    _check_constants(objective, state)
    _check_shared_norms(weights)
    mapped = {official_name(name): value for name, value in weights.items()}
    ours = {name: value for name, value in objective.state_dict().items() if not name.startswith("baseline.")}
    missing, unexpected = sorted(set(ours) - set(mapped)), sorted(set(mapped) - set(ours))
    shapes = [name for name in set(ours) & set(mapped) if ours[name].shape != mapped[name].shape]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"Not the authors' weights for this configuration: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"other shapes {sorted(shapes)[:5]}."
        )
    objective.load_state_dict(mapped, strict=False)


def _check_constants(objective: DigptObjective, state: Mapping[str, Tensor]) -> None:
    widths = {"pos_embed": objective.encoder.embed_dim, "decoder_pos_embed": objective.config.decoder_width}
    for name, width in widths.items():
        if name in state:
            _check_close(name, state[name][0], sincos_2d(width, *objective.layout.grid))
    if "mask" in state:
        _check_close("mask", (state["mask"] >= 0).float(), objective.mask.float().cpu())


def _check_close(name: str, stored: Tensor, ours: Tensor) -> None:
    stored = stored.detach().float().cpu()
    if stored.shape != ours.shape or not torch.allclose(stored, ours, atol=1e-4):
        raise CheckpointError(f"{name} of the checkpoint {tuple(stored.shape)} is not the one of this configuration.")


def _check_shared_norms(weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        first = re.sub(r"(_enc_norm)\.\d+\.", r"\1.0.", name)
        if first in weights and not torch.equal(value, weights[first]):
            raise CheckpointError(f"{name} differs from {first}: fidelity 'official' has one shared tap norm.")
