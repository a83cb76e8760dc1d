"""A client's arguments are checked where they enter."""

from __future__ import annotations

from typing import Any

import pytest
from bet_client import AsyncClient, Client
from bet_client.settings import check_settings


@pytest.mark.parametrize(
    ("url", "protocol", "address"),
    [
        (None, "grpc", "localhost:8001"),
        (None, "http", "localhost:8000"),
        ("triton", "grpc", "triton:8001"),
        ("triton:9000", "http", "triton:9000"),
        ("10.0.0.7", "http", "10.0.0.7:8000"),
        ("[::1]:8001", "grpc", "[::1]:8001"),
    ],
)
def test_an_address_is_a_host_with_the_protocols_port_unless_said(url: Any, protocol: str, address: str) -> None:
    assert [str(found) for found in check_settings(url, protocol, "bet", 1.0, 32).addresses] == [address]


@pytest.mark.parametrize(
    "url", ["http://triton:8000", "triton:8000/v2", "triton:eight", "", ":8001", "me@triton", "a b", 8001, "t?x=1"]
)
def test_what_is_no_address_is_refused_with_an_example(url: Any) -> None:
    with pytest.raises(ValueError, match="write host:port without a scheme or path"):
        Client(url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_fault_is_named_in_one_error(kind: type[Client] | type[AsyncClient]) -> None:
    wrong: dict[str, Any] = {"protocol": "smtp", "model": "", "timeout": -1, "max_rows": 0, "retries": -1}
    with pytest.raises(ValueError, match="url") as caught:
        kind("http://x", **wrong)
    for name in ("url", *wrong):
        assert f"{name} " in str(caught.value)


@pytest.mark.parametrize("url", ["one, two:9000", ["one", "two:9000"], ("one:8001", "two:9000")])
def test_several_addresses_come_in_a_sequence_or_with_commas(url: Any) -> None:
    assert [str(found) for found in check_settings(url, "grpc", "bet", 1.0, 32).addresses] == ["one:8001", "two:9000"]


@pytest.mark.parametrize("url", ["one,,two", ["one", "http://two"], []])
def test_each_of_several_addresses_is_checked(url: Any) -> None:
    with pytest.raises(ValueError, match="url"):
        Client(url)
