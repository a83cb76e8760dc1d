"""`python -m serve`: start Triton on a model repository, say where it answers, keep it right, drain it on SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from serve.errors import ServeError, StartupError
from serve.health import Health, published
from serve.server import Server, start
from serve.supervisor import supervise

EXAMPLE = """\
example:
  python -m serve --repository model_repository --http-port 8000
  curl -s localhost:8000/v2/models/bet/generate -d '{"text": "A wonderful film."}'

With --health-port 8080, localhost:8080/ready is 200 while a real inference is right, for a load balancer; /live is 200
while the supervisor works.

exit status: 0 drained after SIGTERM or Ctrl-C, 1 the server failed, 2 wrong use or a machine that cannot run it
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve a model repository with Triton until SIGTERM or Ctrl-C.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="default %(default)s"
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        command.add_argument(f"--{name}-port", type=_port, default=port, metavar="N", help="default %(default)s")
    command.add_argument(
        "--health-port", type=_port, metavar="N", help="answer /live and /ready here; default: nowhere"
    )
    command.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on; default %(default)s")
    command.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default %(default)s")
    command.add_argument("--engine", choices=("embedded", "container"), default="embedded", help="default %(default)s")
    command.add_argument("--log", type=Path, metavar="FILE", help="append Triton's own log to FILE")
    command.add_argument("--json", action="store_true", help="print one line of JSON when ready")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    def launch() -> Server:
        return start(
            options.repository,
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            metrics_port=options.metrics_port,
            host=options.host,
            device=options.device,
            engine=options.engine,
            log_path=options.log,
        )

    stop = threading.Event()
    health = Health()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)  # until it is ready: give up at once
    with contextlib.ExitStack() as endpoint:
        try:
            if options.health_port is not None:
                endpoint.enter_context(published(health, options.host, options.health_port))
            server = launch()
        except KeyboardInterrupt:
            return 0
        except StartupError as error:
            print(f"serve: {error}", file=sys.stderr)
            return 1
        except ServeError as error:
            print(f"serve: {error}", file=sys.stderr)
            return 2

        def drain(number: int, frame: FrameType | None) -> None:
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, drain)
        print(_announcement(server, as_json=options.json), flush=True)
        try:
            server = supervise(server, launch, stop, health=health)
        except ServeError as error:
            print(f"serve: {error}", file=sys.stderr)
            return 1
        server.stop()
    return 0


def _announcement(server: Server, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(
            {
                "http": server.http_url,
                "grpc": server.grpc_url,
                "metrics": server.metrics_url,
                "models": list(server.models),
                "pid": server.pid,
            }
        )
    text = '{"text": "A wonderful film."}'
    return (
        f"ready: {', '.join(server.models)}\n"
        f"  HTTP     http://{server.http_url}\n"
        f"  gRPC     {server.grpc_url}\n"
        f"  metrics  http://{server.metrics_url}/metrics\n"
        f"  log      {server.log_path}\n"
        f"try: curl -s http://{server.http_url}/v2/models/{server.models[0]}/generate -d '{text}'"
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{port} is not a port; choose 1 to 65535")
    return port


if __name__ == "__main__":
    sys.exit(main())
