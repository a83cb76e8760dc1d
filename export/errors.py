"""What `export` refuses, and why.

    ExportError                 the checkpoint cannot become a served version
    ├── GraphError              a graph that the production server could not load, or that would answer at random
    ├── GateError               the gate could not be run: no texts, or a server that did not come up
    └── RepositoryError         the model repository, or a version in it, is not what the command needs

A gate that runs and does not hold is no error: it is a verdict (`verdict.Report`), and the command exits with 1.
"""


class ExportError(Exception):
    """Base of all errors of this package; its message says what was wrong and what to do."""


class GraphError(ExportError):
    """The exported graph must not be served."""


class GateError(ExportError):
    """The gate could not be run."""


class RepositoryError(ExportError):
    """The model repository, or a version in it, is not what the command needs."""
