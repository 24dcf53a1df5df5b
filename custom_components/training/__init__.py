"""Training with MONAI's engines: the handler that records a run, checkpoints, schedules, logs, validation."""

from .checkpoints import BestCheckpoint
from .engines import trainer, validator
from .loading import loader
from .record import TrainingRecord, default_precision
from .schedules import Schedule, falling_weight
from .scores import registration_score

__all__ = [
    "BestCheckpoint",
    "Schedule",
    "TrainingRecord",
    "default_precision",
    "falling_weight",
    "loader",
    "registration_score",
    "trainer",
    "validator",
]
