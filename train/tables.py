"""The rows of the paper's ablations (Tables 5 to 9), each with its shrunken form on the bundled data.

The paper's teachers cannot be shrunk: stand-ins of the same kind take their place, and every row says which. A row
without one stays blank. Figures are the paper's ImageNet-1K top-1 and ADE20K mIoU in percent; those of Table 7 are
missing from the copy of the paper at hand and stay blank as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CLIP = "bundled-early-teacher"  # image-text contrastive, as CLIP is
STAND_INS = {
    "clip": "the bundled early image-text teacher",
    "clip-small": "an image-text teacher trained for a third of the time",
    "openclip": "the bundled image-text teacher, trained longer",
    "dino": "an encoder of our own pretrained by MAE on pixels: images only, no text",
    "vqvae": "a tokenizer of our own, one code per patch",
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        cells: what the paper's columns say.
        changes: fields of ``PretrainConfig``; None for a row that has no miniature. Of ``objective`` single fields.
        needs: the stand-in (``STAND_INS``) whose file becomes the teacher.
        paper: top-1 and mIoU in the paper, None where its copy has none.
    """

    cells: tuple[str, ...]
    changes: dict[str, Any] | None
    needs: str = "clip"
    paper: tuple[float | None, float | None] = (None, None)
    objective: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one of our own."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    reference: int  # the row whose training time is everyone's, and with which the others are compared
    pairs: tuple[tuple[int, int], ...] = ()  # further rows to compare


def _digpt(*cells: str, needs: str = "clip", paper: tuple[float | None, float | None] = (None, None)) -> Row:
    return Row(cells, {"paradigm": "digpt"}, needs, paper)


def _mae(*cells: str, needs: str = "clip", paper: tuple[float | None, float | None] = (None, None)) -> Row:
    return Row(cells, {"paradigm": "mae"}, needs, paper)


def _decoder(depth: int, paper_width: int, width: int, paper: tuple[float, float]) -> Row:
    sizes = {"decoder_depth": depth, "decoder_width": width}
    return Row((str(depth), str(paper_width), str(width)), {"paradigm": "digpt"}, "clip", paper, sizes)


_FD = Row(("FD", "", ""), {"paradigm": "fd"}, "clip", (84.9, None))
_GEN_FD = Row(("D-iGPT", "yes", "FD instead"), {"paradigm": "gen_fd"}, "clip", (85.1, None))
_GEN_DIS = Row(("D-iGPT", "yes", "yes"), {"paradigm": "digpt"}, "clip", (86.2, None))
_GEN = Row(("Gen alone (ours)", "yes", ""), {"paradigm": "gen"})

TABLES = {
    "5": Table(
        "Semantic tokens (Table 5)",
        ("method", "tokenizer"),
        (
            _mae("MAE", "pixel", needs="pixels", paper=(82.6, 47.1)),
            Row(("iGPT", "pixel"), {"paradigm": "igpt"}, "pixels", (82.0, 44.1)),
            _mae("MAE", "VQVAE", needs="vqvae", paper=(82.2, 46.8)),
            _digpt("D-iGPT", "VQVAE", needs="vqvae", paper=(82.3, 47.0)),
            _mae("MAE", "DINO", needs="dino", paper=(84.0, 50.1)),
            _digpt("D-iGPT", "DINO", needs="dino", paper=(84.7, 51.0)),
            _mae("MAE", "CLIP", paper=(84.6, 52.1)),
            _digpt("D-iGPT", "CLIP", paper=(86.2, 53.8)),
        ),
        7,
    ),
    "6": Table(
        "Tokenizers (Table 6)",
        ("student", "tokenizer"),
        (
            _digpt("ViT-B", "CLIP-B", needs="clip-small", paper=(85.7, 53.0)),
            _digpt("ViT-B", "CLIP-L", paper=(85.9, 53.3)),
            Row(("ViT-B", "CLIP-L@336"), None, paper=(84.6, 51.8)),
            _digpt("ViT-B", "DINO-L", needs="dino", paper=(84.8, 52.0)),
            _digpt("ViT-B", "OpenCLIP-L", needs="openclip", paper=(85.9, 53.2)),
            Row(("ViT-B", "OpenCLIP-H"), None, paper=(86.2, 53.6)),
        ),
        1,
    ),
    "7": Table(
        "Pretraining paradigms (Table 7), all on the tokens of one teacher",
        ("method",),
        (
            _mae("MAE"),
            Row(("EVA",), {"paradigm": "eva"}),
            Row(("KD",), {"paradigm": "kd"}),
            _digpt("D-iGPT"),
        ),
        3,
    ),
    "8": Table(
        "Decoder design (Table 8)",
        ("depth", "width in the paper", "width here"),
        (
            _decoder(1, 1024, 192, (85.6, 52.8)),
            _decoder(2, 1024, 192, (86.2, 53.6)),
            _decoder(4, 1024, 192, (86.0, 53.2)),
            _decoder(2, 512, 96, (85.8, 53.0)),
            _decoder(2, 768, 144, (85.9, 53.3)),
        ),
        1,
    ),
    "9": Table(
        "Discriminative decoder (Table 9)", ("method", "Gen decoder", "Dis decoder"), (_FD, _GEN_FD, _GEN_DIS, _GEN), 2
    ),
    "central": Table(
        "The paper's central comparisons: semantic against pixel targets, and what each decoder adds",
        ("method", "Gen decoder", "Dis decoder"),
        (
            _GEN_DIS,
            _GEN_FD,
            _FD,
            _GEN,
            Row(("iGPT, pixels", "yes", ""), {"paradigm": "igpt"}, "pixels", (82.0, 44.1)),
        ),
        0,
        ((3, 4),),
    ),
    "orders": Table(
        "Permutation reuse: cluster orders per teacher pass",
        ("orders",),
        tuple(Row((str(orders),), {"paradigm": "digpt", "orders": orders}) for orders in (1, 2, 4)),
        0,
    ),
}
