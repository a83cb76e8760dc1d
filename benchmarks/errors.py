"""Everything that can stop a benchmark before it has a verdict.

BenchmarkError
├── UsageError        wrong options (exit status 2)
│   ├── SloError      the file of targets
│   └── TextsError    the file of texts
├── ServerError       the server cannot be measured (exit status 1)
└── PeerError         a system to compare with cannot be set up or does not answer (exit status 1)
"""

from __future__ import annotations


class BenchmarkError(Exception):
    """Base of all errors of this package; the message is one line that says what to do."""


class UsageError(BenchmarkError):
    """The command was called with something that cannot be right."""


class SloError(UsageError):
    """The file of targets is missing, malformed, or names something that is not measured."""


class TextsError(UsageError):
    """The texts to send are missing or unusable."""


class ServerError(BenchmarkError):
    """The server is not there, does not know the model, or does not accept as many users."""


class PeerError(BenchmarkError):
    """A system to compare with, or what it needs, cannot be installed, does not start or answers wrongly."""
