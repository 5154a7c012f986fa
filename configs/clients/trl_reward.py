"""A reward function for TRL's GRPOTrainer and RLOOTrainer that asks `grm_ray.serve`."""

import json
import os
import time
import urllib.error
import urllib.request

URL = os.environ.get("GRM_RAY_URL", "http://127.0.0.1:8700")
ROWS = 256  # of one request


def grm_reward(prompts, completions, **_):
    """Rewards of `completions`, conversations (lists of messages) or texts, as TRL hands them."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, str):
            rows.append({"messages": [{"role": "user", "content": prompt}], "response": completion})
        else:
            # What stands before the last answer (tools and their results) is conversation too.
            said = [*prompt, *completion[:-1]]
            messages = [{"role": m["role"], "content": m["content"] or ""} for m in said]
            rows.append({"messages": messages, "response": completion[-1]["content"]})
    scores = []
    for start in range(0, len(rows), ROWS):
        body = json.dumps({"rows": rows[start : start + ROWS]}).encode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ['GRM_RAY_SERVE_TOKEN']}",
        }
        request = urllib.request.Request(f"{URL}/score", body, headers)
        with _patiently(request) as reply:
            scores += json.load(reply)["scores"]
    return scores


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
