"""`python -m grm_ray.export MODEL_FOLDER TARGET`: write a reward model as others read it.

Exit codes: 0 done; 2 the model or the arguments are wrong (one line says how); 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grm_ray.config.errors import ConfigError, NotWritten
from grm_ray.runtime.disk import check_place

FORMATS = ("sequence-classification", "adapter", "folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job with `arguments` (those of the command line by default); the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _check(given)
        for warning in _export(given):
            print(f"warning: {warning}", file=sys.stderr)
        print(f"reward model: {given.target}")
        if given.push_to_hub:
            print(f"pushed: {_push(given.target, given.push_to_hub, given.private)}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotWritten as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the last place that can say what happened
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {str(error)[-2000:]}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m grm_ray.export",
        description="Write a reward model in a form that transformers, vLLM or PEFT can read.",
    )
    parser.add_argument("model", metavar="MODEL_FOLDER", help="a reward model's folder or hub id")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="sequence-classification: AutoModelForSequenceClassification, for vLLM too; adapter: "
        "the LoRA adapter for PEFT; folder: the layout of this project (of models that others "
        "trained)",
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload TARGET to the Hugging Face hub"
    )
    parser.add_argument("--private", action="store_true", help="with --push-to-hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Whatever can be known before work.

    Raises:
        ConfigError: the arguments are wrong, or the model cannot have this format.
    """
    if given.target.exists() and (not given.target.is_dir() or any(given.target.iterdir())):
        raise ConfigError(f"{given.target} already exists; name a new folder")
    target = given.target.absolute()
    if Path(given.model).absolute() in target.parents:
        raise ConfigError(f"{given.target} lies inside the model's folder; name another place")
    try:
        check_place(target)
    except OSError as error:
        raise ConfigError(f"{given.target} cannot be created: {error.strerror or error}") from None
    if given.push_to_hub is None:
        if given.private:
            raise ConfigError("--private can only be used with --push-to-hub")
    else:
        _check_hub(given.push_to_hub)


def _check_hub(name: str) -> None:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # lazy there

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {name}: {error}") from None
    if name.count("/") != 1:
        raise ConfigError(f"--push-to-hub {name}: write OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push-to-hub: HF_HUB_OFFLINE is set")
    if get_token() is None:
        raise ConfigError("--push-to-hub: no Hugging Face token; run `hf auth login`")


def _export(given: argparse.Namespace) -> list[str]:
    """Write the target; returns warnings.

    Raises:
        ConfigError: the model is not one, or cannot have this format.
        NotWritten: the disk is full; no target is there.
    """
    from transformers.utils import logging

    from grm_ray.models import card, checkpoint, export
    from grm_ray.models.backbone import load_tokenizer
    from grm_ray.runtime.disk import writing

    logging.disable_progress_bar()
    trust = given.trust_remote_code
    try:
        folder = checkpoint.local_folder(given.model)
        head = checkpoint.head_of(folder)
        wrong = export.unfit(head) if given.format == FORMATS[0] else None
        if wrong is not None:
            raise ConfigError(f"{given.model} cannot be exported as {given.format}: {wrong}")
        contract = checkpoint.reward_contract(given.model, trust)
        readme, plain = _card(folder), asdict(contract)
        if given.format == "adapter":
            text = card.exported(readme, "adapter", plain)
            with writing(given.target):
                export.save_adapter(folder, given.target, text)
            return []
        model, _, _ = checkpoint.load_reward_model(given.model, _dtype(folder), trust)
        tokenizer = load_tokenizer(str(folder), trust)
        contract.check(tokenizer)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if given.format == "folder":
        text = card.exported(readme, "folder", plain)
        with writing(given.target):
            checkpoint.save_reward_model(model, head, tokenizer, contract, given.target, text)
        return []

    def classifier_card(differ: list[str]) -> str:
        return card.exported(readme, "sequence-classification", plain, differ)

    with writing(given.target):
        differ = export.save_sequence_classification(
            model, head, tokenizer, contract, given.target, classifier_card
        )
    return [card.differing(plain, differ)] if differ else []


def _card(folder: Path) -> str:
    path = folder / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _dtype(folder: Path) -> Any:
    """The dtype that the weights are stored in; float16 is read as float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = config.get("dtype") or config.get("torch_dtype")
    return "bfloat16" if stored == "bfloat16" else "float32"


def _push(folder: Path, name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.create_repo(name, private=private, exist_ok=True)
    hub.upload_folder(repo_id=name, folder_path=folder)
    return f"https://huggingface.co/{name}"


if __name__ == "__main__":
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    sys.exit(main())
