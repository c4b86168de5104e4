"""Settings of every test: no model hub, and no time limit on the first call, which loads the language model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ANONYMIZED_TELEMETRY"] = "False"

import hypothesis

# In CI the examples are the same every time: what a random one finds is for whoever is there to mend it.
hypothesis.settings.register_profile(
    "lince", deadline=None, max_examples=100, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("lince")
