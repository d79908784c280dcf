"""Everything that a user can cause derives from one class.

A message says what came, what was wanted and what to do next. Slips of the
programmer (a wrong type, a misspelt keyword) stay ``TypeError`` and ``ValueError``.
"""

__all__ = [
    "AttUnetError",
    "Cancelled",
    "ChannelError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "ModelError",
    "TrainingError",
]


class AttUnetError(Exception):
    """Base of every error that a user's input or machine can cause."""


class DataError(AttUnetError):
    """An image or a label image cannot be used as it is."""


class ChannelError(DataError):
    """An image's channels are not those that a model takes."""


class ModelError(AttUnetError):
    """A model, its file or its specification cannot be used."""


class CheckpointError(ModelError):
    """A checkpoint belongs to another training, or cannot be read."""


class DeviceError(AttUnetError):
    """The machine lacks what was asked for: a device, memory, a backend."""


class TrainingError(AttUnetError):
    """A training in a process of its own reported an error or died."""


class Cancelled(AttUnetError):
    """The user stopped the work; nothing was changed."""
