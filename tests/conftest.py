"""Settings for all tests: no model hub, and no time limit for examples: the first one loads the language model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ANONYMIZED_TELEMETRY"] = "False"
# Hashed words: the tests of the other embedders name them.
os.environ["LINCE_EMBEDDINGS"] = "embedded"

import hypothesis

# In CI the examples are the same every time, so that a failure there belongs to the change that is tested.
hypothesis.settings.register_profile(
    "lince", deadline=None, max_examples=100, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("lince")
