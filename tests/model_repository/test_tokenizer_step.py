"""The tokenizer step in the real Triton: the ids of training, text as text, and refusals that harm nobody else."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

import serve
from export.texts import HOSTILE
from train.checkpoint import sha256_of
from train.tokenizer import UNK_ID, encode, load_tokenizer

Step = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def ids_in_training(tiny_checkpoint: Path) -> Callable[[list[str]], list[np.ndarray]]:
    tokenizer = load_tokenizer(tiny_checkpoint)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    return lambda texts: encode(tokenizer, texts, config["max_tokens"], config["head_tokens"])


@pytest.fixture(scope="module")
def step(server: serve.Server) -> Step:
    """Asks the step alone, by its own name: rows of bytes -> its outputs."""
    client = grpc.InferenceServerClient(server.grpc_url)

    def ask(rows: list[bytes], model: str = "bet_tokenizer") -> dict[str, np.ndarray]:
        text = grpc.InferInput("text", [len(rows), 1], "BYTES")
        text.set_data_from_numpy(np.array([[row] for row in rows], dtype=np.object_))
        answer = client.infer(model, [text], client_timeout=60)
        return {o.name: answer.as_numpy(o.name) for o in answer.get_response().outputs}

    return ask


def served_ids(step: Step, text: str) -> list[int]:
    answer = step([text.encode()])
    assert answer["input_ids"].dtype == np.int64
    return answer["input_ids"][0].tolist()


# sentencepiece#629, #331
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_gets_the_ids_of_training(step: Step, ids_in_training: Any, text: str) -> None:
    assert served_ids(step, text) == ids_in_training([text])[0].tolist()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=200).filter(lambda text: text.strip() and text.isprintable() is not None))
def test_any_text_gets_the_ids_of_training(step: Step, ids_in_training: Any, text: str) -> None:
    assert served_ids(step, text) == ids_in_training([text])[0].tolist()


# tf#17551
@pytest.mark.parametrize("characters", [39, 40, 41, 99, 100, 101, 5000])
def test_words_of_any_length_get_the_ids_of_training(step: Step, ids_in_training: Any, characters: int) -> None:
    text = f"good {'x' * characters} bad"
    assert served_ids(step, text) == ids_in_training([text])[0].tolist()


def test_a_long_text_keeps_its_head_and_its_tail_and_says_so(step: Step, ids_in_training: Any) -> None:
    text = " ".join(f"word{i % 97} is number {i}" for i in range(400))
    answer = step([text.encode()])
    (expected,) = ids_in_training([text])
    assert answer["input_ids"][0].tolist() == expected.tolist()
    assert answer["truncated"].tolist() == [[True]]
    assert answer["tokens"][0, 0] > len(expected)  # before the cut
    assert answer["tokens"].dtype == np.int32


# tf#38417
def test_a_text_without_a_token_becomes_the_unknown_one_and_not_an_empty_row(step: Step) -> None:
    assert served_ids(step, "\u200b") == [UNK_ID]


def test_special_tokens_of_a_user_are_plain_text(step: Step, ids_in_training: Any, tiny_checkpoint: Path) -> None:
    pad = load_tokenizer(tiny_checkpoint).token_to_id("[PAD]")
    ids = served_ids(step, "[PAD] good [PAD]")
    assert pad not in ids
    assert len(ids) > 3


def test_nothing_is_lost_behind_a_nul(step: Step, ids_in_training: Any) -> None:
    assert served_ids(step, "good\0bad") == ids_in_training(["good\0bad"])[0].tolist()
    with_tail, without = step([b"abc\0\0"]), step([b"abc"])
    assert with_tail["tokens"][0, 0] >= without["tokens"][0, 0]


def test_rows_of_a_request_are_filled_up_with_what_no_text_can_produce(step: Step, ids_in_training: Any) -> None:
    texts = ["short", "a much longer text than the first one, with several words", "?"]
    answer = step([text.encode() for text in texts])
    for row, expected in zip(answer["input_ids"], ids_in_training(texts), strict=True):
        assert row[: len(expected)].tolist() == expected.tolist()
        assert (row[len(expected) :] == -1).all()
    assert answer["tokens"][:, 0].tolist() == [len(ids) for ids in ids_in_training(texts)]


def test_requests_that_are_joined_get_their_own_ids(step: Step, ids_in_training: Any) -> None:
    texts = [f"text {'very ' * (i % 9)}number {i}" for i in range(200)]
    expected = ids_in_training(texts)
    with ThreadPoolExecutor(20) as pool:
        for ids, right in zip(pool.map(lambda text: served_ids(step, text), texts), expected, strict=True):
            assert ids == right.tolist()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([b""], "the text is empty"),
        ([b" \n\t\xc2\xa0"], "the text is blank"),
        ([b"caf\xe9"], "not UTF-8 (byte 3 is 0xe9)"),
        ([b"a" * 65_537], "65537 bytes and at most 65536"),
        ([b"fine", b"good", b""], "row 2: the text is empty"),
        ([b"fine", b"\xff"], "row 1: the text is not UTF-8"),
        ([b"\xed\xa0\x80"], "not UTF-8"),  # a lone surrogate
    ],
)
@pytest.mark.parametrize("model", ["bet_tokenizer", "bet", "bet_torchscript"])
def test_a_text_that_cannot_be_read_is_the_senders_fault_and_named(
    step: Step, rows: list[bytes], said: str, model: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        step(rows, model)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert said in str(refused.value.message())


# tf#38417
def test_a_bad_request_does_not_harm_those_that_it_is_joined_with(step: Step, ids_in_training: Any) -> None:
    good = [f"a good text, number {i}" for i in range(60)]
    expected = ids_in_training(good)
    with ThreadPoolExecutor(20) as pool:
        bad = [pool.submit(step, [b"\xff"]) for _ in range(60)]
        answers = list(pool.map(lambda text: served_ids(step, text), good))
        assert all(isinstance(future.exception(), InferenceServerException) for future in bad)
    assert answers == [ids.tolist() for ids in expected]


MILLION = base64.b64encode(bytes(range(256)) * 3_000)  # 1 MB
STALLING = {  # text, and whether it is short enough to be read at all
    "200,000 of one character": (b"a" * 200_000, False),
    "1 MB of base64": (MILLION, False),
    "the longest of one character": (b"a" * 65_536, True),
    "the longest of base64": (MILLION[:65_536], True),
    "the longest without a letter": (b"." * 65_536, True),
}


def test_texts_made_to_stall_are_refused_unread_or_answered_and_hold_nobody_up(step: Step) -> None:
    # tiktoken#195
    def answered(text: bytes, read: bool) -> None:
        if read:
            assert step([text], "bet")["truncated"].size == 1
            return
        with pytest.raises(InferenceServerException) as refused:
            step([text], "bet")
        assert f"{len(text)} bytes and at most 65536 are read" in str(refused.value.message())

    def milliseconds(number: int) -> float:
        started = time.perf_counter()
        step([b"a normal review, number %d" % number], "bet")
        return 1000 * (time.perf_counter() - started)

    def p99(pool: ThreadPoolExecutor) -> float:
        return float(np.quantile(list(pool.map(milliseconds, range(300))), 0.99))

    with ThreadPoolExecutor(4) as normal, ThreadPoolExecutor(2) as stalling:
        alone = p99(normal)
        sent = [stalling.submit(answered, *STALLING[name]) for _ in range(6) for name in STALLING]
        beside = p99(normal)
        for future in sent:
            future.result()
    assert beside <= max(500.0, 10 * alone)  # the second where the machine itself is busy


@pytest.mark.parametrize("shape", [[0, 1], [1, 0]])
@pytest.mark.parametrize("model", ["bet", "bet_tokenizer"])
def test_an_input_without_elements_is_refused_and_kills_nothing(
    server: serve.Server, step: Step, shape: list[int], model: str
) -> None:
    client = http.InferenceServerClient(server.http_url)
    text = http.InferInput("text", shape, "BYTES")
    text.set_data_from_numpy(np.empty(shape, dtype=np.object_), binary_data=False)
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [text])
    assert refused.value.status() == "400"
    client.close()
    assert server.is_running()
    assert len(served_ids(step, "still here")) >= 1


@pytest.mark.parametrize("outputs", [["label"], ["truncated"], ["review", "tokens"], []])
def test_any_subset_of_outputs_can_be_asked_for(server: serve.Server, outputs: list[str]) -> None:
    client = grpc.InferenceServerClient(server.grpc_url)
    text = grpc.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"fine"]], dtype=np.object_))
    wanted = [grpc.InferRequestedOutput(name) for name in outputs]
    answer = client.infer("bet", [text], outputs=wanted or None)
    names = {o.name for o in answer.get_response().outputs}
    assert names == set(outputs) if outputs else len(names) == 15
    with pytest.raises(InferenceServerException) as refused:
        client.infer("bet", [text], outputs=[grpc.InferRequestedOutput("nonsense")])
    assert refused.value.status() in {"StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"}
    client.close()


def altered_vocabulary(version: Path) -> None:
    content = json.loads((version / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first, second = [word for word in vocabulary if word.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (version / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def altered_with_its_hash(version: Path) -> None:
    """As if another release of the library read the same file differently: the hash agrees, the ids do not."""
    manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
    manifest["tokenizer"]["golden"][0]["ids"][0] += 1
    manifest["tokenizer"]["sha256"] = sha256_of(version / "tokenizer.json")
    for copy in version.parents[1].glob("bet_*/1/manifest.json"):
        copy.write_text(json.dumps(manifest), encoding="utf-8")


# tf#45812, #45701
@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (altered_vocabulary, "is not the file that was exported"),
        (altered_with_its_hash, "gives other ids than at export"),
        (lambda version: (version / "manifest.json").unlink(), "manifest.json"),
    ],
)
def test_a_tokenizer_that_is_not_the_models_refuses_to_start(
    alter: Callable[[Path], None], said: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.server.require_intact", lambda *_: None)  # as in a container that others start
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    alter(models / "bet_tokenizer" / "1")
    with pytest.raises(serve.ServeError, match=said):
        serve.start(models, models=["bet_tokenizer"], timeout=60)
