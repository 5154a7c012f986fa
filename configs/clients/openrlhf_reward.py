"""A reward function file for OpenRLHF that asks `grm_ray.serve` with its token.

OpenRLHF takes the path of a Python file where it takes the address of a server, and calls its
`reward_func`. Its `queries` are prompt and answer in the policy's template: the reward model must
have been trained with the same one.
"""

import json
import os
import time
import urllib.error
import urllib.request

URL = os.environ.get("GRM_RAY_URL", "http://127.0.0.1:8700")
ROWS = 256  # of one request


def reward_func(queries, prompts, labels=None, **_):
    """`rewards`, `scores` and `extra_logs` of whole texts and their prompts."""
    import torch

    found = []
    for start in range(0, len(queries), ROWS):
        part = slice(start, start + ROWS)
        body = json.dumps({"query": list(queries[part]), "prompts": list(prompts[part])}).encode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ['GRM_RAY_SERVE_TOKEN']}",
        }
        request = urllib.request.Request(f"{URL}/get_reward", body, headers)
        with _patiently(request) as reply:
            found += json.load(reply)["rewards"]
    rewards = torch.tensor(found)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _patiently(request, tries=8):
    """The reply; while the service is busy or starting again it is asked once more."""
    for left in reversed(range(tries)):
        try:
            return urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or not left:
                raise
        except urllib.error.URLError:
            if not left:
                raise
        time.sleep(2 ** (tries - 1 - left) / 4)
    raise AssertionError("unreachable")
