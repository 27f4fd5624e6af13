"""What trainers write: rewards, token ids or text, without scores."""

from rlvar.recorded.container import RecordedRollouts
from rlvar.recorded.reading import is_recorded, read_recorded

__all__ = ["RecordedRollouts", "is_recorded", "read_recorded"]
