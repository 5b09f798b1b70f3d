"""Former names of `models`, until jobs/transfer uses those."""

from .models import Models as Gathered
from .models import read_models as gather
from .models import said_of

__all__ = ["Gathered", "gather", "said_of"]
