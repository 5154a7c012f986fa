"""A process of its own: scores of token ids by vLLM's pooling runner, as JSON.

python vllm_scores.py MODEL IDS.json DTYPE SCORES.json
"""

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}

if __name__ == "__main__":
    from vllm import LLM

    model, ids, dtype, out = sys.argv[1:]
    llm = LLM(model, runner="pooling", dtype=dtype, enforce_eager=True, max_model_len=512)
    with open(ids) as file:
        prompts = [{"prompt_token_ids": row} for row in json.load(file)]
    scores = [output.outputs.probs[0] for output in llm.classify(prompts, use_tqdm=False)]
    with open(out, "w") as file:
        json.dump(scores, file)
