"""A custom reward function for verl that asks `grm_ray.serve`.

verl hands over the answer and what the data set keeps in `extra_info`: the question must be there.
"""

import json
import os
import time
import urllib.error
import urllib.request

URL = os.environ.get("GRM_RAY_URL", "http://127.0.0.1:8700")


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The reward of `solution_str` to `extra_info["question"]`, a text or a list of messages."""
    asked = (extra_info or {})["question"]
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    body = json.dumps({"rows": [{"messages": messages, "response": solution_str}]}).encode()
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {os.environ['GRM_RAY_SERVE_TOKEN']}",
    }
    request = urllib.request.Request(f"{URL}/score", body, headers)
    with _patiently(request) as reply:
        return json.load(reply)["scores"][0]


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
