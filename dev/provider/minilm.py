"""all-MiniLM-L6-v2, a real embedding model of 384 dimensions, on onnxruntime without a network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

VOCABULARY = Path(__file__).with_name("data") / "bert-base-uncased-vocab.txt"
DIMENSIONS = 384
MAX_TOKENS = 256  # sentence-transformers' limit for this model; the rest of a text is not read
# Measured on one core: 16 texts of 27 tokens go 1.4 times as fast together as alone, while 16 texts of 256 tokens go
# slower than alone and take 450 MB more. So short texts go together and long ones nearly alone.
BATCH_TEXTS = 16
BATCH_TOKENS = 512

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Texts of about the same length: where they were in the input, and their tokens."""

    positions: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]


class Embedder:
    """The model and its tokenizer; `embed` may be called from several threads."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        """Load the model: about 0.2 s and 100 MB."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena would keep the largest batch's memory for ever
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        self._tokenizer = _tokenizer(VOCABULARY)
        self._separator = _id(self._tokenizer, "[SEP]")

    def tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return each text's tokens in full, [CLS] and [SEP] included."""
        return [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def cut(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the part of a text's tokens that the model reads."""
        return tokens if len(tokens) <= MAX_TOKENS else (*tokens[: MAX_TOKENS - 1], self._separator)

    def embed(self, tokens: Sequence[tuple[int, ...]]) -> Vectors:
        """Return one vector of length 1 for each text, shape (texts, 384)."""
        width = max(map(len, tokens))
        ids = np.zeros((len(tokens), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = one
            mask[row, : len(one)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        output = self._session.run(None, {name: feed[name] for name in self._inputs})[0]
        return _normalised(_mean(output, mask))


def batches(tokens: Sequence[tuple[int, ...]]) -> Iterator[Batch]:
    """Cut texts into batches of nearly the same length, so that little is computed on padding."""
    order = sorted(range(len(tokens)), key=lambda position: len(tokens[position]))
    gathered: list[int] = []
    for position in order:
        width = len(tokens[position])  # the longest so far: padding fills the others up to it
        if gathered and (len(gathered) == BATCH_TEXTS or (len(gathered) + 1) * width > BATCH_TOKENS):
            yield Batch(tuple(gathered), tuple(tokens[one] for one in gathered))
            gathered = []
        gathered.append(position)
    if gathered:
        yield Batch(tuple(gathered), tuple(tokens[one] for one in gathered))


def _mean(output: Vectors, mask: npt.NDArray[np.int64]) -> Vectors:
    """Average the vectors of a text's tokens; a model with pooling inside has none to average."""
    if output.ndim == 2:
        return output
    weights = mask[..., None].astype(np.float32)
    pooled: Vectors = (output * weights).sum(axis=1) / weights.sum(axis=1)
    return pooled


def _normalised(vectors: Vectors) -> Vectors:
    result: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return result


def _tokenizer(vocabulary: Path) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))  # noqa: S106 - a word's token
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    separator, start = (("[SEP]", _id(tokenizer, "[SEP]")), ("[CLS]", _id(tokenizer, "[CLS]")))
    tokenizer.post_processor = BertProcessing(separator, start)
    return tokenizer


def _id(tokenizer: Tokenizer, word: str) -> int:
    number = tokenizer.token_to_id(word)
    if number is None:
        raise ValueError(f"{VOCABULARY} has no {word}")
    return int(number)
