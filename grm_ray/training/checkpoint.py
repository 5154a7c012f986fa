"""Checkpoints that depend neither on the number of ranks nor on the ZeRO stage.

index.json                  parameters with shape, file and hashes; steps; what the run adds
state-RANK-N.safetensors    fp32 weight, exp_avg and exp_avg_sq of every RANKth parameter, whole
random-RANK.pt              that rank's random states
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from grm_ray.config.errors import NotWritten
from grm_ray.runtime.disk import writing
from grm_ray.training.state import KEYS, Shape, TrainedState

INDEX = "index.json"
FORMAT = 1
FILE_BYTES = 2 << 30  # a rank holds so much on its way to a file, or one parameter


class CheckpointMismatch(ValueError):
    """What is in the folder is not what this engine had, or could have had, when it saved."""


def save(
    state: TrainedState,
    folder: Path,
    facts: dict[str, Any],
    also: dict[str, dict[str, torch.Tensor]],
) -> dict[str, str]:
    """Write `state` and `facts` (plain values, equal on all ranks); returns `hashes`. All ranks.

    A rank that cannot write goes on through what all do together, or the others would wait.

    Args:
        also: files of tensors that this rank writes beside, by name.

    Raises:
        NotWritten: on every rank, where any could not.
    """
    wrong: list[str] = []

    def attempt(write: Callable[[], Any]) -> None:
        if not wrong:
            try:
                with writing(folder):
                    write()
            except NotWritten as error:
                wrong.append(str(error))

    attempt(lambda: folder.mkdir(parents=True, exist_ok=True))
    for file, tensors in also.items():
        attempt(partial(save_file, tensors, folder / file))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    files = _files(state.shapes, world)
    digests: dict[str, list[str]] = {}
    pending: dict[str, torch.Tensor] = {}
    current = ""

    def flush() -> None:
        if pending:
            attempt(lambda: save_file(pending, folder / current))
            pending.clear()

    for name, whole in _mine(state):
        if files[name] != current:
            flush()
            current = files[name]
        digests[name] = _digests(whole)
        pending |= {f"{name}/{key}": whole[key].to("cpu", copy=True) for key in KEYS}
    flush()
    attempt(lambda: torch.save(_random_states(), folder / f"random-{rank}.pt"))
    digests = _together(digests)
    hashes = _hashes(digests, state.adam_steps, facts)
    randoms = _everywhere(hashes["random"])
    if rank == 0:
        index = {
            "format": FORMAT,
            "world": world,
            "adam_steps": state.adam_steps,
            "facts": facts,
            "hashes": {k: v for k, v in hashes.items() if k != "random"},
            "random": randoms,
            "parameters": {
                name: {"shape": shape, "file": files[name], "hashes": digests[name]}
                for name, shape in state.shapes.items()
            },
        }
        attempt(lambda: (folder / INDEX).write_text(json.dumps(index), encoding="utf-8"))
    failed = sorted({problem for part in _everywhere(wrong) for problem in part})
    if failed:
        raise NotWritten(failed[0])
    return hashes


def load(state: TrainedState, folder: Path, seed: int) -> dict[str, Any]:
    """Restore what `save` wrote; returns its `facts`. All ranks call, and all raise alike.

    On as many ranks as saved it, everything is as it was, bit for bit. On another number, weights
    and moments are; a rank without random states starts new ones from (seed, rank, steps).

    Raises:
        CheckpointMismatch: naming what is missing, of another shape, damaged or different; the
            state is then of no use.
    """
    rank = torch.distributed.get_rank()
    index, wrong = _read_index(folder)
    _agree(folder, wrong)
    _agree(folder, _differences(state.shapes, index["parameters"]))
    _agree(folder, _restore(state, folder, index["parameters"]))
    state.publish(index["adam_steps"])
    wrong = []
    if rank < index["world"]:
        wrong = _restore_random(folder / f"random-{rank}.pt")
    else:
        _new_random_states([seed, rank, index["adam_steps"]])
    _agree(folder, wrong)
    digests = _together({name: _digests(whole) for name, whole in _mine(state)})
    here = _hashes(digests, state.adam_steps, index["facts"])
    _agree(
        folder,
        [
            f"{name}: {what} read back differ from those saved"
            for name, entry in index["parameters"].items()
            for what, saved, now in zip(
                ("weights", "moments"), entry["hashes"], digests[name], strict=True
            )
            if saved != now
        ]
        + [f"{what} differ" for what, saved in index["hashes"].items() if here[what] != saved]
        + (["random states differ"] if _random_differ(index, here["random"]) else []),
    )
    return index["facts"]


def hashes(state: TrainedState, facts: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of the live state: all but "random" are equal on every rank. All ranks call."""
    digests = _together({name: _digests(whole) for name, whole in _mine(state)})
    return _hashes(digests, state.adam_steps, facts)


# -------------------------------------------------------------------- parameters


def _mine(state: TrainedState) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every `world`th parameter, whole; the ranks go through all of them side by side."""
    world = torch.distributed.get_world_size()
    for i, name in enumerate(state.shapes):
        whole = state.whole(name, at=i % world)
        if whole is not None:
            yield name, whole


def _files(shapes: dict[str, Shape], world: int) -> dict[str, str]:
    """The file that each parameter goes to; a rank begins another one when its last is full."""
    files: dict[str, str] = {}
    for rank in range(world):
        number, filled = 0, 0
        for name in list(shapes)[rank::world]:
            size = len(KEYS) * 4 * math.prod(shapes[name])
            if filled and filled + size > FILE_BYTES:
                number, filled = number + 1, 0
            filled += size
            files[name] = f"state-{rank}-{number}.safetensors"
    return files


def _read_index(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The index, and what is wrong with it."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, [f"{INDEX} is missing"]
    except ValueError as error:
        return {}, [f"{INDEX} is damaged ({error})"]
    found = index.get("format") if isinstance(index, dict) else None
    return index, [] if found == FORMAT else [f"{INDEX} is of format {found}, not {FORMAT}"]


def _differences(shapes: dict[str, Shape], saved: dict[str, Any]) -> list[str]:
    wrong = [f"{name} is not in it" for name in shapes if name not in saved]
    wrong += [
        f"{name} is in it, but is not trained by this config"
        for name in saved
        if name not in shapes
    ]
    return wrong + [
        f"{name} has shape {tuple(saved[name]['shape'])}, here {shape}"
        for name, shape in shapes.items()
        if name in saved and tuple(saved[name]["shape"]) != shape
    ]


def _restore(state: TrainedState, folder: Path, saved: dict[str, Any]) -> list[str]:
    """Lay every parameter into place; returns what could not be read. Waits for no other rank."""
    wrong = []
    for name, entry in saved.items():
        path = folder / entry["file"]
        try:
            with safe_open(path, framework="pt") as file:
                whole = {key: file.get_tensor(f"{name}/{key}") for key in KEYS}
            shapes = {tuple(tensor.shape) for tensor in whole.values()}
            if shapes != {state.shapes[name]}:
                raise ValueError(f"shapes {shapes}")
        except (OSError, SafetensorError, ValueError) as error:
            wrong.append(f"{path.name}: {name} cannot be read ({error})")
            continue
        state.put(name, whole)
    return wrong


# ------------------------------------------------------------------------ hashes


def _hashes(
    digests: dict[str, list[str]], adam_steps: int, facts: dict[str, Any]
) -> dict[str, str]:
    of = {name: digests[name] for name in sorted(digests)}
    return {
        "weights": _hash_text(json.dumps({name: weight for name, (weight, _) in of.items()})),
        "optimizer": _hash_text(json.dumps([of, adam_steps])),
        "schedule": _hash_text(json.dumps([facts.get("steps"), facts.get("total_steps")])),
        "random": _hash_random(),
        "normalizers": _hash_text(json.dumps(facts.get("extra"), sort_keys=True)),
    }


def _digests(whole: dict[str, torch.Tensor]) -> list[str]:
    """Of the weight, and of the moments."""
    weight, *moments = KEYS
    return [_hash_tensors([whole[weight]]), _hash_tensors([whole[key] for key in moments])]


def _hash_tensors(tensors: Iterable[torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_text(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


# ----------------------------------------------------------------- random states


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)  # its second place, which the stubs do not tell apart
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random(path: Path) -> list[str]:
    try:
        saved = torch.load(path, weights_only=True)
        random.setstate(saved["python"])
        np.random.set_state(saved["numpy"])
        torch.set_rng_state(saved["torch"])
        if saved["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["cuda"])
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except Exception as error:  # an unreadable file raises whatever its damage leads to
        return [f"{path.name} cannot be read ({type(error).__name__})"]
    return []


def _new_random_states(entropy: list[int]) -> None:
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]))


def _hash_random() -> str:
    states = _random_states()
    tensors = [states.pop(name) for name in ("torch", "cuda")]
    return _hash_text(_hash_tensors(t for t in tensors if t is not None) + repr(states))


def _random_differ(index: dict[str, Any], mine: str) -> bool:
    same = index["world"] == torch.distributed.get_world_size()
    return same and index["random"][torch.distributed.get_rank()] != mine


# ------------------------------------------------------------------ between ranks


def _everywhere(value: Any) -> list[Any]:
    """Each rank's `value`, on all ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _together(digests: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: digest for part in _everywhere(digests) for name, digest in part.items()}


def _agree(folder: Path, wrong: list[str]) -> None:
    """Raise on every rank what is wrong on any: one that went on alone would wait for ever."""
    found = sorted({problem for part in _everywhere(wrong) for problem in part})
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise CheckpointMismatch(f"{folder}: {'; '.join(found[:5])}{more}")
