"""Tests of the documentation: `make docs` runs them, and `make test` does not."""

import os
import tempfile

# Where models of the hub are looked for. Its library reads these when it is imported.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="lince-hub-")
# Servers and models of the reader's own environment are not those of the pages.
for variable in ("LINCE_INDEX", "LINCE_BASE_URL", "LINCE_API_KEY", "LINCE_PASSWORD"):
    os.environ.pop(variable, None)
