"""A connection is an open file, and a shell commonly allows 1,024 of them to a process and to what it starts."""

from __future__ import annotations

import resource

from benchmarks.errors import UsageError

_SPARE = 256  # files, libraries and pipes of the process itself, and of a server that inherits the limit


def allow_connections(count: int) -> None:
    """Raise this process's limit of open files so that it, and what it starts, may hold `count` connections.

    Raises:
        UsageError: if the system does not allow as many.
    """
    needed = count + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(
                f"{count} connections need {needed} open files and this system allows {hard}: raise the hard limit "
                "(`ulimit -Hn`, or LimitNOFILE of the service), or hold fewer"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
