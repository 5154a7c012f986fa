"""Prints what an installed package requires here: `python requirements_of.py NAME [LEFT_OUT...]`.

Run by the Python of the environment in question, so that its pip and its markers count.
"""

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

if __name__ == "__main__":
    name, left_out = sys.argv[1], sys.argv[2:]
    for line in requires(name) or []:
        need = Requirement(line)
        wanted = need.marker is None or need.marker.evaluate({"extra": ""})
        if wanted and canonicalize_name(need.name) not in left_out:
            need.marker = None
            print(need)
