"""Scores from `/classify`, asked for as of a vLLM server: `python vllm_classify.py TEXT...`."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

URL = os.environ.get("GRM_RAY_URL", "http://127.0.0.1:8700")


def classify(texts):
    """One score a text; each carries the reward model's template."""
    body = json.dumps({"model": "reward", "input": list(texts)}).encode()
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {os.environ['GRM_RAY_SERVE_TOKEN']}",
    }
    request = urllib.request.Request(f"{URL}/classify", body, headers)
    with _patiently(request) as reply:
        return [row["probs"][0] for row in json.load(reply)["data"]]


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


if __name__ == "__main__":
    print(*classify(sys.argv[1:]), sep="\n")
