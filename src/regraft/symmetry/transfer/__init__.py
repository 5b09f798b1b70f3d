"""A training run recorded, and carried over to another initialisation by matching gradients."""

from .agreement import Agreement, agreement
from .gradients import Gradients
from .recorder import TrajectoryRecorder
from .trajectory import Trajectory
from .transfer import Method, Transferred, transfer

__all__ = [
    "Agreement",
    "Gradients",
    "Method",
    "Trajectory",
    "TrajectoryRecorder",
    "Transferred",
    "agreement",
    "transfer",
]
