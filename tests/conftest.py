"""Tiny models and data, built here, so that the real stack runs in seconds."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

# Before huggingface_hub is imported, which reads it once: no test asks the network, and none waits
# for one that is not there.
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent
MARK = "GRM_RAY_TEST_JOB"
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SENTENCE = "the cat sat on a mat and saw red birds fly over green hills while rain fell"
WORDS = SENTENCE.split()


def build_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 400 tokens with a chat template."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 20, vocab_size=400, special_tokens=["<|start|>", "<|end|>", "<|pad|>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def build_model(folder: Path, seed: int = 0) -> Path:
    """A random two-layer Llama of about 0.5 M weights, with its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> dict[str, Path]:
    """Pairs in which the answer that repeats the prompt's words is preferred, and prompts."""
    import random

    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    pairs, prompts = [], []
    for _ in range(48):
        asked = rng.sample(WORDS, 4)
        other = [w for w in WORDS if w not in asked]
        pairs.append(
            {
                "prompt": " ".join(asked),
                "chosen": " ".join(rng.sample(asked, 3)),
                "rejected": " ".join(rng.sample(other, 3)),
            }
        )
        # Long enough that an engine caches the keys of its first 32 tokens.
        prompts.append({"prompt": " ".join(rng.choices(WORDS, k=30))})
    made = {}
    for name, rows in (("pairs", pairs), ("prompts", prompts)):
        made[name] = folder / f"{name}.jsonl"
        made[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def small_cluster():
    """A Ray of this process alone, for tests of pools."""
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of two mebibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def job(*arguments: str, cwd: Path, stdout=subprocess.PIPE, **environment: str) -> subprocess.Popen:
    """`python -m grm_ray.<job> ...` in a process of its own."""
    mark = uuid.uuid4().hex  # every process that the job starts inherits it
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark, **environment},
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    process.mark = mark
    return process


def descendants(process: subprocess.Popen, *titles: str) -> list[psutil.Process]:
    """What runs below a job whose command begins with one of `titles`, as Ray names its workers."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith(titles):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def started_by(process: subprocess.Popen) -> list[psutil.Process]:
    """What is still running of all that a job started."""
    found = []
    for other in psutil.process_iter():
        try:
            if other.pid != process.pid and other.environ().get(MARK) == process.mark:
                found.append(other)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


def finish(process: subprocess.Popen, timeout: float = 600) -> str:
    """Output of a job, which must end by itself and leave no process behind."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"the job did not end in {timeout} s:\n{output[-3000:]}")
    assert not started_by(process), started_by(process)
    return output


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
