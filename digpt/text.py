"""Tokenizers, prompt templates and class sets (a content-hashed matrix of label embeddings). Imports without torch.

>>> json_str = train_tokenizer(captions, vocab_size=2048)
>>> tokenizer = CompactTokenizer(json_str, context_length=16)
>>> tokenizer(["red apple"]).shape
(1, 16)

``TextTower``, a ``torch.nn.Module``, is defined in ``digpt.model`` and offered here lazily.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from digpt.artifact import canonical_json
from digpt.errors import CheckpointError, ConfigError, InputError, MissingDependencyError, near_misses

if TYPE_CHECKING:
    from digpt.model import TextTower as TextTower

PAD, START, END = "<pad>", "<start>", "<end>"
TEXT_BATCH = 256  # texts embedded, and prompts held, at a time
MAX_PROMPT_CHARS = 10_000  # a filled template; every text tower we know reads less than a tenth of it

# Prompt sets by name; "{}" stands for the label. `template_set` knows two more, those of open_clip.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photo": ("a photo of a {}.",),  # CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4
}
# Name -> its tuple in open_clip.zero_shot_metadata (MIT licence): CLIP's 80 ImageNet prompts, and 7 of them.
_OPEN_CLIP_TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
TEMPLATE_SETS = (*TEMPLATES, *_OPEN_CLIP_TEMPLATES)


def __getattr__(name: str) -> Any:
    if name == "TextTower":  # torch loads only for those who build a text tower
        from digpt.model import TextTower

        return TextTower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Tokenizer(Protocol):
    """Texts to token ids: ``[N]`` strings -> int64 ``[N, context_length]``."""

    context_length: int

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]: ...


class CompactTokenizer:
    """A byte-level BPE stored in the checkpoint: start token, text, end token, zeros.

    The end token has the largest id, so that open_clip's ``pool_type="argmax"`` finds it; truncation keeps it. Text
    that spells a special token is read as text.

    Raises:
        CheckpointError: the JSON is no tokenizer, or its special tokens are missing or misplaced.
    """

    def __init__(self, json_str: str, context_length: int) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        try:
            self._tokenizer = HuggingFaceTokenizer.from_str(json_str)
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"The stored tokenizer cannot be read: {error}.") from None
        self._tokenizer.encode_special_tokens = True
        self.json = json_str
        self.context_length = context_length
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        ids = [self._tokenizer.token_to_id(token) for token in (PAD, START, END)]
        if ids[0] != 0 or ids[1] is None or ids[2] != self.vocab_size - 1:
            raise CheckpointError(f"The stored tokenizer lacks {PAD} = 0, {START} or {END} = largest id.")
        self.start_id, self.end_id = int(ids[1]), int(ids[2])

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """``[N]`` strings -> int64 ``[N, context_length]``; one string counts as a list of one."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.zeros((len(texts), self.context_length), dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            body = self._tokenizer.encode(text, add_special_tokens=False).ids[: self.context_length - 2]
            ids = [self.start_id, *body, self.end_id]
            row[: len(ids)] = ids
        return tokens


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE on ``captions`` (lower-cased, white space collapsed) and return its JSON.

    ``vocab_size`` counts everything: 256 bytes, three special tokens and the merges. The same captions, in any
    order, give the same tokenizer.

    Raises:
        ConfigError: ``vocab_size`` below 259.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 3:
        raise ConfigError(f"vocab_size={vocab_size} cannot hold 256 bytes and 3 special tokens; use at least 259.")
    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # The prefix space makes a word the same token at the start of a text and within it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, special_tokens=[PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    tokenizer.add_special_tokens([START, END])  # after training: the largest ids
    return str(tokenizer.to_str())


def fill(template: str, name: str) -> str:
    """Put a label into a template; braces within the label stay as they are.

    Raises:
        InputError: the template has no ``{}``, or the prompt would exceed ``MAX_PROMPT_CHARS``.
    """
    if "{}" not in template:
        raise InputError(f"Prompt template {template!r} has no {{}} for the label; write it like 'a photo of a {{}}.'.")
    length = len(template) + template.count("{}") * (len(name) - len("{}"))
    if length > MAX_PROMPT_CHARS:
        raise InputError(
            f"A template and a label make a prompt of {length:,} characters; at most {MAX_PROMPT_CHARS:,} are accepted."
        )
    return template.replace("{}", name)


def template_set(name: str) -> tuple[str, ...]:
    """The prompt templates of one of ``TEMPLATE_SETS``, each with a ``{}`` for the label.

    ``openai`` (80) and ``simple`` (7) are read from open_clip, whose import takes seconds and brings torch.
    Source: https://github.com/openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb.

    Raises:
        ConfigError: no set of this name.
        MissingDependencyError: open_clip is not installed, and the set is one of its own.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name not in _OPEN_CLIP_TEMPLATES:
        raise ConfigError(
            f"Unknown template set {name!r}; valid: {', '.join(TEMPLATE_SETS)}.{near_misses(name, TEMPLATE_SETS)}"
        )
    return tuple(template("{}") for template in getattr(_zero_shot_metadata(), _OPEN_CLIP_TEMPLATES[name]))


def imagenet_names() -> tuple[str, ...]:
    """CLIP's 1000 ImageNet class names in the order of the sorted wnids, read from open_clip (MIT licence).

    Two names stand for two classes each: "missile" (657 and 744) and "sunglasses" (836 and 837).

    Raises:
        MissingDependencyError: open_clip is not installed.
    """
    return tuple(_zero_shot_metadata().IMAGENET_CLASSNAMES)


def _zero_shot_metadata() -> Any:
    try:
        from open_clip import zero_shot_metadata
    except ImportError:
        raise MissingDependencyError(
            "ImageNet's prompt templates and class names are those of open_clip, which is not installed: "
            "pip install open_clip_torch."
        ) from None
    return zero_shot_metadata


def class_embeddings(
    embed_texts: Callable[[Sequence[str]], NDArray[np.float32]], names: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """Embed labels through prompt templates: ``[C]`` names -> float32 ``[C, D]`` of unit length.

    Each prompt's embedding is normalised, the templates are averaged and the mean is normalised again (CLIP's
    prompt ensembling, https://arxiv.org/abs/2103.00020, section 3.1.4).

    Raises:
        InputError: no names, no templates, a template without ``{}`` or a prompt too long; nothing was embedded then.
    """
    if not names or not templates:
        raise InputError(f"{'Labels' if not names else 'Prompt templates'} must not be empty.")
    longest = max(names, key=len)
    for template in templates:
        fill(template, longest)
    prompts = (fill(template, name) for name in names for template in templates)
    batches = iter(lambda: list(islice(prompts, TEXT_BATCH)), [])
    prompt_unit = np.concatenate([normalize(embed_texts(batch)) for batch in batches])
    mean = prompt_unit.reshape(len(names), len(templates), -1).mean(axis=1)
    return normalize(mean)


def normalize(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row of ``[N, D]`` to unit length; an all-zero row stays zero instead of becoming NaN."""
    embeddings = np.asarray(embeddings, dtype=np.float32)
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings / np.maximum(norm, 1e-12), dtype=np.float32)


def kept_unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `normalize`, but rows that all have unit length within 5e-7 are returned as they are, not copied.

    Seeing that a class matrix is of unit rows is cheaper than dividing it by its norms again.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    squares = np.einsum("nd,nd->n", embeddings, embeddings)
    return embeddings if bool((np.abs(squares - 1) <= 1e-6).all()) else normalize(embeddings)


@dataclass(frozen=True)
class ClassSet:
    """Labels and their embeddings under one model: ``matrix`` is float32 ``[C, D]`` of unit length."""

    labels: tuple[str, ...]
    matrix: NDArray[np.float32]
    content_hash: str

    @classmethod
    def build(
        cls,
        embed_texts: Callable[[Sequence[str]], NDArray[np.float32]],
        labels: Sequence[str],
        templates: Sequence[str],
        fingerprint: str,
    ) -> ClassSet:
        """Embed ``labels``; ``fingerprint`` is that of the model that ``embed_texts`` belongs to."""
        matrix = class_embeddings(embed_texts, labels, templates)
        return cls(tuple(labels), matrix, class_set_hash(labels, templates, fingerprint))


def class_set_hash(labels: Sequence[str], templates: Sequence[str], fingerprint: str) -> str:
    """``sha256:<64 hex>`` of what decides a class matrix, computed without embedding anything."""
    content = canonical_json([fingerprint, list(labels), list(templates)])
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
