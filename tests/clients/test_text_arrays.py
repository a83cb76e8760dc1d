"""A text arrives with every byte of it, whatever holds it, or it is refused; the stand-in answers with their number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bet_client import InvalidInputError
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

import serve

TEXT = "abc\0\0"


def tokens_of(server: serve.Server, protocol: str, texts: np.ndarray) -> list[int]:
    """Bytes of each text as they arrived, asked by NVIDIA's own client."""
    library, url = (grpc, server.grpc_url) if protocol == "grpc" else (http, server.http_url)
    with library.InferenceServerClient(url) as client:
        text = library.InferInput("text", list(texts.shape), "BYTES")
        text.set_data_from_numpy(texts)
        return client.infer("bet", [text]).as_numpy("tokens").ravel().tolist()  # type: ignore[no-any-return]


def test_an_array_of_objects_arrives_whole_by_nvidias_client(triton: serve.Server, protocol: str) -> None:
    # server#2545
    rows: list[list[object]] = [[TEXT.encode()], [b"abc"]]
    assert tokens_of(triton, protocol, np.array(rows, dtype=np.object_)) == [5, 3]


def test_arrays_of_fixed_width_lose_the_end_in_numpy_and_are_refused_or_shortened_by_nvidias_client(
    triton: serve.Server, protocol: str
) -> None:
    # server#2545: why ours refuses them
    assert tokens_of(triton, protocol, np.array([[TEXT.encode()]])) == [3]
    with pytest.raises(InferenceServerException, match="expected BYTES"):
        tokens_of(triton, protocol, np.array([[TEXT]]))


def test_our_client_sends_every_byte_of_a_text_or_refuses_what_holds_it(ask: Callable[..., Any]) -> None:
    # server#2545
    client = ask()
    assert client.predict(TEXT).tokens == 5
    for texts in ([TEXT, "abc"], np.array([TEXT, "abc"], dtype=np.object_), iter([TEXT, "abc"])):
        assert [answer.tokens for answer in client.predict_many(texts)] == [5, 3]
    for array in (np.array([TEXT]), np.array([TEXT.encode()])):
        with pytest.raises(TypeError, match="dtype=object"):
            client.predict_many(array)
    for answer in client.predict_many([TEXT.encode(), np.bytes_(TEXT.encode())]):
        assert isinstance(answer, InvalidInputError)
        assert "not a str" in str(answer)
