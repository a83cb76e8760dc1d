"""The ids that training saw are the ids that any later reading of `tokenizer.json` gives, for any text at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from train.data import load_corpus
from train.errors import CheckpointError, ConfigError, DataError
from train.tokenizer import PAD_ID, UNK_ID, encode, load_tokenizer, save_tokenizer, train_tokenizer

HOSTILE = [
    "good\0bad",
    "👩‍👩‍👧 family 🏳️‍🌈",
    "\u202eright to left\u202c \u200f",
    "café cafe\u0301 ＣＡＦÉ",
    "\u0301\u0301\u0300",
    "\ufeff\u200b\u2060",
    "a" * 200_000,
    "x" * 40 + " " + "x" * 41,
    "[UNK] [PAD] [CLS] <br /><br/> <BR>",
    "Ω≈ç√ 漢字 한국어 עברית",
    "\r\n\t\v\f\x1c\x85\u2028",
    "\ud7ff\ue000\uffff\U0010ffff",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(load_corpus(limit=300).train.texts, 2_000)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in encode(tokenizer, [text], 10**6, 0)[0]]


def test_the_special_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]")) == (PAD_ID, UNK_ID)
    assert tokenizer.get_vocab_size() == 2_000


def test_pieces_are_numbered_in_an_order_that_does_not_depend_on_the_run(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.id_to_token(i) for i in range(2, tokenizer.get_vocab_size())]
    assert pieces == sorted(pieces)


def test_line_breaks_of_the_web_are_white_space(tokenizer: Tokenizer) -> None:
    assert _ids(tokenizer, "one<br /><br />two<br>three") == _ids(tokenizer, "one two three")


def test_case_and_accents_do_not_matter(tokenizer: Tokenizer) -> None:
    assert _ids(tokenizer, "A Great FILM, naïve") == _ids(tokenizer, "a great film, naive")
    assert _ids(tokenizer, "cafe\u0301") == _ids(tokenizer, "café")


def test_a_special_token_in_a_text_is_plain_text(tokenizer: Tokenizer) -> None:
    assert PAD_ID not in _ids(tokenizer, "[PAD]")
    assert len(_ids(tokenizer, "[UNK]")) >= 3


def test_nothing_is_cut_at_a_nul_character(tokenizer: Tokenizer) -> None:
    assert _ids(tokenizer, "good\0bad")[-1] == _ids(tokenizer, "goodbad")[-1]


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u200b", "<br />"])
def test_a_text_without_a_token_becomes_one_unknown(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = encode(tokenizer, [text], 512, 128)
    assert ids.tolist() == [UNK_ID]
    assert ids.dtype == np.int64


def test_a_long_text_keeps_its_head_and_its_tail(tokenizer: Tokenizer) -> None:
    text = " ".join(["film", "story", "good", "bad", "the"] * 50)
    whole, cut = _ids(tokenizer, text), encode(tokenizer, [text], 100, 25)[0].tolist()
    assert cut == whole[:25] + whole[-75:]
    assert encode(tokenizer, [text], len(whole), 25)[0].tolist() == whole
    assert encode(tokenizer, [text], 10, 10)[0].tolist() == whole[:10]
    assert encode(tokenizer, [text], 10, 0)[0].tolist() == whole[-10:]


def test_a_head_longer_than_the_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="head_length 200 must lie between 0 and max_length 100"):
        encode(tokenizer, ["a"], 100, 200)


@settings(max_examples=100)
@given(st.lists(st.text(), min_size=1, max_size=5))
@example(HOSTILE)
def test_a_text_has_the_same_ids_alone_fast_and_among_neighbours(tokenizer: Tokenizer, texts: list[str]) -> None:
    together = [ids.tolist() for ids in encode(tokenizer, texts, 10**6, 0)]
    assert together == [tokenizer.encode(text, add_special_tokens=False).ids or [UNK_ID] for text in texts]
    assert together == [_ids(tokenizer, text) for text in texts]


def test_a_saved_tokenizer_gives_the_same_ids_here_and_by_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__.startswith(("PreTrainedTokenizer", "TokenizersBackend"))
    assert (theirs.pad_token_id, theirs.unk_token_id) == (PAD_ID, UNK_ID)
    texts = [*HOSTILE, *load_corpus(limit=20).test.texts]
    assert [_ids(again, text) for text in texts] == [_ids(tokenizer, text) for text in texts]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in texts
    ]


def test_a_word_longer_than_forty_characters_is_one_unknown(tokenizer: Tokenizer) -> None:
    assert UNK_ID not in _ids(tokenizer, "a" * 40)
    assert _ids(tokenizer, "a" * 41) == [UNK_ID]


def test_processes_forked_after_tokenising_finish() -> None:
    # Megatron-Bridge#5328: the library's threads, then a fork, used to wait for each other for ever.
    script = (
        "import datasets, train.tokenizer as t\n"
        "k = t.train_tokenizer(['a good film', 'a bad film'] * 20, 200)\n"
        "t.encode(k, ['a film'] * 1000, 16, 4)\n"
        "d = datasets.Dataset.from_dict({'text': ['a film'] * 64})\n"
        "f = lambda rows: {'ids': [i.tolist() for i in t.encode(k, rows['text'], 16, 4)]}\n"
        "print(len(d.map(f, batched=True, batch_size=16, num_proc=2, new_fingerprint='forked')[63]['ids']))\n"
    )
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.stdout.strip() == "2", done.stderr


def test_stored_truncation_and_padding_are_switched_off(tokenizer: Tokenizer, tmp_path: Path) -> None:
    stored = Tokenizer.from_str(tokenizer.to_str())
    stored.enable_truncation(4)
    stored.enable_padding(length=16)
    stored.save(str(tmp_path / "tokenizer.json"))
    text = "a good film about a bad story"
    assert _ids(load_tokenizer(tmp_path / "tokenizer.json"), text) == _ids(tokenizer, text)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_cannot_be_learnt_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size 10 cannot hold an alphabet"):
        train_tokenizer(["a text"], 10)
    with pytest.raises(DataError, match="no vocabulary can be learnt"):
        train_tokenizer([" ", ""], 500)
