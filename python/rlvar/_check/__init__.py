"""All validation and array preparation: one door, six rooms.

Each function takes what the user passed and returns what the kernels expect, or raises an error
that names the argument, what was wanted and what was passed. Nothing is allocated for results before
every argument has passed.
"""

from rlvar._check.arrays import *  # noqa: F403
from rlvar._check.options import *  # noqa: F403
from rlvar._check.packed import *  # noqa: F403
from rlvar._check.progress import *  # noqa: F403
from rlvar._check.sample import *  # noqa: F403
from rlvar._check.scans import *  # noqa: F403
