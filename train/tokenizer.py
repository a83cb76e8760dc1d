"""The tokenizer: WordPiece trained on the training part, and everything that happens to a text before the model sees
ids.

All preprocessing lives in `tokenizer.json` (line-break markup, lower case, accents), because the served tokenizer step
reads that file with the `tokenizers` library alone and must give the ids that the model was trained on. The only step
outside is the cut of long texts, `encode`: their head and their tail, since the end of a review carries its verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from train.errors import CheckpointError, ConfigError, DataError

PAD, UNK = "[PAD]", "[UNK]"
_PADDING, _UNKNOWN, _OPENING = (PAD, "<pad>"), (UNK, "<unk>"), ("[CLS]", "<s>", "<cls>")  # names in the wild
_LINE_BREAK = normalizers.Replace(Regex(r"<br\s*/?>"), " ")
PAD_ID, UNK_ID = 0, 1
TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_SMALLEST_VOCABULARY = 100


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer.

    Args:
        texts: the training part alone, so that no held-out text shapes the vocabulary.
        vocab_size: the largest vocabulary wanted, special tokens included; a small corpus gives fewer.

    Raises:
        ConfigError: for a vocabulary too small to hold an alphabet.
        DataError: if the texts hold nothing to learn from.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ConfigError(f"vocab_size {vocab_size} cannot hold an alphabet; give at least {_SMALLEST_VOCABULARY}")
    tokenizer = Tokenizer(_word_pieces())
    tokenizer.normalizer = normalizers.Sequence(
        [
            _LINE_BREAK,
            normalizers.BertNormalizer(lowercase=True, strip_accents=True),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[PAD, UNK], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() <= 2:
        raise DataError("the training texts hold no character that occurs twice, so no vocabulary can be learnt")
    # The library numbers the pieces in the order of a randomly seeded hash map; sorted, the default corpus gives the
    # same file every time. (Pieces that tie in frequency at the end of a small vocabulary may still differ.)
    pieces = sorted(piece for piece in tokenizer.get_vocab() if piece not in (PAD, UNK))
    tokenizer.model = _word_pieces({piece: i for i, piece in enumerate([PAD, UNK, *pieces])})
    return _plain(tokenizer)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`, or the one in a folder, for encoding as in training.

    Stored truncation and padding are switched off, and a special token in a user's text is read as plain text.

    Raises:
        CheckpointError: if there is no such file, or it is not a tokenizer.
    """
    file = Path(path)
    if file.is_dir():
        file = file / TOKENIZER_FILE
    if not file.is_file():
        raise CheckpointError(f"there is no tokenizer at {file}; the folder of a checkpoint holds {TOKENIZER_FILE}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file} is not a tokenizer that this version can read: {error}") from error
    return _plain(tokenizer)


def adopt_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a pretrained encoder's folder, with line-break markup read as white space, as ours does.

    Raises:
        CheckpointError: if there is none, or it knows no padding, unknown or opening token.
    """
    tokenizer = load_tokenizer(path)
    for kind, names in (("padding", _PADDING), ("unknown", _UNKNOWN), ("opening", _OPENING)):
        if _special(tokenizer, names) is None:
            raise CheckpointError(f"the tokenizer in {path} has no {kind} token (none of {', '.join(names)})")
    steps = [_LINE_BREAK] if tokenizer.normalizer is None else [_LINE_BREAK, tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the padding, unknown and (for an adopted tokenizer) opening token, by their names in `BetConfig`."""
    kinds = {"pad_token_id": _PADDING, "unk_token_id": _UNKNOWN, "opening_token_id": _OPENING}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found = {key: _special(tokenizer, names) for key, names in kinds.items()}
    return {key: vocabulary[token] for key, token in found.items() if token is not None}


def _special(tokenizer: Tokenizer, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if tokenizer.token_to_id(name) is not None), None)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` by which `AutoTokenizer` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": _special(tokenizer, _PADDING),
        "unk_token": _special(tokenizer, _UNKNOWN),
        "model_input_names": ["input_ids", "attention_mask"],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    (folder / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: Tokenizer, texts: list[str], max_length: int, head_length: int) -> list[NDArray[np.int64]]:
    """Token ids of each text, int64 [1 … max_length].

    A text of more than `max_length` tokens keeps its first `head_length` and its last `max_length - head_length`. A
    text without any token (white space) becomes the one id of the unknown token, so that every row has at least one.

    Raises:
        ConfigError: if the head does not fit into the length.
    """
    if not 0 <= head_length <= max_length or max_length < 1:
        raise ConfigError(
            f"head_length {head_length} must lie between 0 and max_length {max_length}, and that be at least 1"
        )
    empty = special_ids(tokenizer).get("unk_token_id")
    if empty is None:
        raise ConfigError(f"the tokenizer has no {UNK} token, so a text without any token would have no id")
    rows = (encoding.ids or [empty] for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    return [np.array(_cut(ids, max_length, head_length), dtype=np.int64) for ids in rows]


def _word_pieces(vocabulary: dict[str, int] | None = None) -> models.WordPiece:
    return models.WordPiece(vocab=vocabulary or {}, unk_token=UNK, max_input_chars_per_word=40)


def _cut(ids: list[int], max_length: int, head_length: int) -> list[int]:
    if len(ids) <= max_length:
        return ids
    return ids[:head_length] + ids[len(ids) - (max_length - head_length) :]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
