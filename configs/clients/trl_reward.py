"""A reward function for TRL's GRPOTrainer and RLOOTrainer that asks `grm_ray.serve`."""

import json
import os
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
            messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
            rows.append({"messages": messages, "response": completion[-1]["content"]})
    scores = []
    for start in range(0, len(rows), ROWS):
        body = json.dumps({"rows": rows[start : start + ROWS]}).encode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ['GRM_RAY_SERVE_TOKEN']}",
        }
        request = urllib.request.Request(f"{URL}/score", body, headers)
        with urllib.request.urlopen(request, timeout=600) as reply:
            scores += json.load(reply)["scores"]
    return scores
