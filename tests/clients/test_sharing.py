"""One client among threads, tasks, event loops and processes."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from bet_client import AsyncClient, Client, ClientStateError, Prediction

import serve
from tests.clients.conftest import Protocol
from tests.clients.test_answers import expected_probabilities


def test_32_threads_share_a_client(protocol: Protocol, url: str) -> None:
    barrier = threading.Barrier(32)

    def work(thread: int) -> bool:
        barrier.wait(30)
        texts = [f"thread {thread} text {number}" for number in range(10)]
        alone = all(client.predict(text).probabilities == expected_probabilities(text) for text in texts)
        together = client.predict_many(texts)
        return alone and [a.probabilities for a in together] == [expected_probabilities(text) for text in texts]  # type: ignore[union-attr]

    with Client(url, protocol=protocol, timeout=30) as client, ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))


def test_any_thread_may_close_or_drop_a_client(
    protocol: Protocol, url: str, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    clients = [Client(url, protocol=protocol) for _ in range(2)]
    for client in clients:
        client.predict("hello")

    def close_and_drop() -> None:
        clients[0].close()
        clients.clear()
        gc.collect()

    del client
    thread = threading.Thread(target=close_and_drop)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert not clients
    assert "greenlet" not in capfd.readouterr().err
    # The dropped one had an open socket, which Python says; nothing else may be complained about.
    assert {warning.category for warning in recwarn} <= {ResourceWarning}


def test_closing_during_a_call_frees_the_caller(protocol: Protocol, url: str) -> None:
    client = Client(url, protocol=protocol)
    client.predict("warm")
    outcomes: list[Any] = []

    def work() -> None:
        try:
            while True:
                outcomes.append(client.predict("slow 0.05"))
        except ClientStateError as error:
            outcomes.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not outcomes:
        thread.join(0.01)
    client.close()
    thread.join(10)
    assert isinstance(outcomes[-1], ClientStateError)


def test_closing_during_a_call_frees_the_task(protocol: Protocol, url: str) -> None:
    async def main() -> None:
        client = AsyncClient(url, protocol=protocol)
        await client.predict("warm")
        under_way = asyncio.create_task(client.predict("slow 1"))
        await asyncio.wait([under_way], timeout=0.1)
        await client.close()
        with pytest.raises(ClientStateError, match="closed during the call"):
            await under_way

    asyncio.run(main())


def test_a_cancelled_task_is_cancelled_and_not_an_error(protocol: Protocol, url: str) -> None:
    async def main() -> None:
        async with AsyncClient(url, protocol=protocol) as client:
            await client.predict("warm")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.predict("slow 1"), 0.1)
            assert isinstance(await client.predict("hello"), Prediction)

    asyncio.run(main())


def test_200_tasks_share_a_client(protocol: Protocol, url: str) -> None:
    async def main() -> list[Prediction]:
        async with AsyncClient(url, protocol=protocol, timeout=30) as client:
            return await asyncio.gather(*(client.predict(f"task {number}") for number in range(200)))

    answers = asyncio.run(main())
    assert [a.probabilities for a in answers] == [expected_probabilities(f"task {number}") for number in range(200)]


def test_an_async_client_belongs_to_one_event_loop(protocol: Protocol, url: str) -> None:
    async def first(client: AsyncClient) -> None:
        await client.predict("hello")

    async def second(client: AsyncClient) -> None:
        with pytest.raises(ClientStateError, match="another event loop"):
            await client.predict("hello")

    client = AsyncClient(url, protocol=protocol)  # outside any loop
    with asyncio.Runner() as runner:
        runner.run(first(client))
        with ThreadPoolExecutor(1) as other:
            other.submit(asyncio.run, second(client)).result(10)
        runner.run(client.close())


def test_each_grpc_client_has_a_connection_of_its_own(triton: serve.Server) -> None:
    port = int(triton.grpc_url.rpartition(":")[2])

    def connections() -> int:
        return sum(c.raddr.port == port for c in psutil.Process().net_connections("tcp") if c.raddr)

    before = connections()
    clients = [Client(triton.grpc_url) for _ in range(5)]
    for client in clients:
        client.predict("hello")
    assert connections() - before == 5
    for client in clients:
        client.close()


FORK = """
import os, sys
from bet_client import Client, ClientStateError
protocol, url = sys.argv[1:]
client = Client(url, protocol=protocol)
print("parent", client.predict("hello").label, flush=True)
child = os.fork()
if child == 0:
    try:
        client.predict("hello")
    except ClientStateError as error:
        print("child", error, flush=True)
    with Client(url, protocol=protocol) as own:
        print("child's own", own.predict("hello").label, flush=True)
    sys.exit(0)
print("status", os.waitpid(child, 0)[1], flush=True)
print("parent", client.predict("hello").label, flush=True)
"""


def test_after_a_fork_the_child_is_told_at_once_and_the_parent_goes_on(protocol: Protocol, url: str) -> None:
    # gRPC's own switch for forks must not be off: without it no new channel works in the child either.
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_ENABLE_FORK_SUPPORT"}
    ran = subprocess.run(
        [sys.executable, "-c", FORK, protocol, url],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=environment,
    )
    first, told, own, status, last = ran.stdout.splitlines()
    assert first == last == "parent positive"
    assert "cannot be used in its fork" in told
    assert own == "child's own positive"
    assert status == "status 0"
