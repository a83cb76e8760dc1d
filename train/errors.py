"""What can go wrong in the training stage, as one small tree.

TrainError
├── ConfigError        an option or a configuration value that cannot be meant
├── DataError          a corpus that cannot be read, labelled or split
├── CheckpointError    a checkpoint folder that is not whole, or not one of ours
└── CalibrationError   calibration rows that cannot support what is asked of them

Each message says what was wrong, with which value, and what to do about it. The commands print it as one line.
"""


class TrainError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(TrainError):
    """An option or a configuration value that cannot be meant."""


class DataError(TrainError):
    """A corpus that cannot be read, labelled or split."""


class CheckpointError(TrainError):
    """A checkpoint folder that is not whole, or not one of ours."""


class CalibrationError(TrainError):
    """Calibration rows that cannot support what is asked of them."""
