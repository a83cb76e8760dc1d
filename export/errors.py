"""What `export` refuses, and why.

    ExportError                 the checkpoint cannot become a served version
    ├── RefusedCheckpointError  a folder whose answers would be wrong, or that says too little to be served
    ├── PrecisionError          a precision or device that this checkpoint or machine cannot be served in
    ├── GraphError              a graph that the production server could not load, or that would answer at random
    ├── GateError               the gate could not be run: no texts, or a server that did not come up
    ├── RepositoryError         the model repository, or a version in it, is not what the command needs
    └── RegistryError           the registry does not answer, lacks a version, or holds other files than were pushed

A gate that runs and does not hold is no error: it is a verdict (`verdict.Report`), and the command exits with 1.
"""


class ExportError(Exception):
    """Base of all errors of this package; its message says what was wrong and what to do."""


class RefusedCheckpointError(ExportError):
    """The checkpoint's answers would be wrong, or it says too little to be served."""


class PrecisionError(ExportError):
    """The checkpoint or this machine cannot serve the precision or device that was asked for."""


class GraphError(ExportError):
    """The exported graph must not be served."""


class GateError(ExportError):
    """The gate could not be run."""


class RepositoryError(ExportError):
    """The model repository, or a version in it, is not what the command needs."""


class RegistryError(ExportError):
    """The registry of versions cannot be used, or what it holds is not what was pushed."""
