"""How long the longest tests are: a short form in `make test`, the whole with `make test LONG=1`."""

import os
from typing import Final

LONG: Final = bool(os.environ.get("LINCE_LONG_TESTS"))

# Examples of a property that takes seconds for each model, or each of them milliseconds for many.
EXAMPLES: Final = 1_000 if LONG else 250

# Of a series of cases that each take a second, every one or every third.
STEP: Final = 1 if LONG else 3
