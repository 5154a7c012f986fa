"""Ten thousand kinds of bad input, each tried in this process; `benchmarks/fuzz.py` runs them."""

import os

# A name that looks like one of the hub's is not looked up: the answer would take half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"
