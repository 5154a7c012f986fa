"""Starts the processes of a training group for a test."""

import json
import os
import subprocess
import sys

import torch

from tests.conftest import ROOT


def launch(script, world, runs, folder, failing=False):
    """Let `world` processes of `script` go through `runs`; they are gone when it returns.

    Args:
        failing: one is expected to end with an error, and the others are not waited for then.
    """
    from grm_ray.training.process_group import address

    _, port = address()
    ranks, logs = [], [folder / f"{script.stem}-{world}-{rank}.log" for rank in range(world)]
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            given = json.dumps([rank, world, port, str(folder), runs])
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(script), given],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        for rank, log in zip(reversed(ranks), reversed(logs), strict=True):
            code = rank.wait(timeout=600)
            if failing:
                assert code, log.read_text()[-3000:]
                return log.read_text()
            assert code == 0, log.read_text()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def tiny_backbone(folder):
    """A two-layer Llama of 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
