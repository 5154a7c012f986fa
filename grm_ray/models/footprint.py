"""How large a model is and what a pass through it takes, from its config alone.

The model is built on torch's meta device, whose tensors have shapes and no data, and a micro-batch
goes through the very modules that training and scoring use. What is alive at a time is counted on
the way: activations that the backward pass needs, the vocabulary's logits of a chunk, recomputed
layers. So it holds for whatever architecture transformers has, without a formula for each.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Head, Model
from grm_ray.data.packing import Group, pack
from grm_ray.models import attention
from grm_ray.models.backbone import apply_lora, unwrap
from grm_ray.models.policy import Policy
from grm_ray.models.reward_model import RewardModel

MOST_ANSWERS = 128  # of a pass


class Unknown(ValueError):
    """A size cannot be told beforehand; the message says why."""


@dataclass(frozen=True)
class Size:
    """Parameters of a module, tied ones once, and the bytes that they take."""

    total: int
    trainable: int
    bytes: int
    trainable_bytes: int

    @classmethod
    def of(cls, module: nn.Module) -> Size:
        weights = list(module.parameters())
        learning = [p for p in weights if p.requires_grad]
        return cls(
            sum(p.numel() for p in weights),
            sum(p.numel() for p in learning),
            sum(p.nbytes for p in weights),
            sum(p.nbytes for p in learning),
        )


@dataclass(frozen=True)
class Pass:
    """One micro-batch.

    Attributes:
        tokens: of the micro-batch.
        peak: the most bytes alive at a time beyond weights; after a backward pass, gradients that
            are there by then count.
        flops: of the matrix products of the whole pass, a multiplication and an addition each one.
        forward_flops: of the forward pass.
    """

    tokens: int
    peak: int
    flops: int
    forward_flops: int


def build(path: str | Path, model: Model, dtype: torch.dtype) -> nn.Module:
    """The language model of a folder (or of a hub id in the local cache), without data.

    Raises:
        Unknown: there is its config cannot be read offline, or transformers cannot build it.
        ConfigError: `lora.targets` does not fit it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = model.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - a hub id that is not here ends in many kinds
        raise Unknown(
            f"{path}: its config cannot be read offline ({type(error).__name__})"
        ) from None
    try:
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation=attention.NAME,
                trust_remote_code=trust,
            )
            lm.config.use_cache = False
            if model.lora is not None:
                lm = apply_lora(lm, model.lora)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - an architecture may fail in a way of its own
        said = " ".join(str(error).split())[:200]
        raise Unknown(f"{path}: cannot be built without weights ({said})") from None
    if model.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if model.lora is not None:
            lm.enable_input_require_grads()
    return lm.requires_grad_(False) if model.frozen else lm


def check_adapter(path: str | Path, model: Model) -> None:
    """That the model of a folder can have the adapter that `model` asks for; what cannot be built
    without weights is not looked at.

    Raises:
        ConfigError: `lora.targets` does not fit it.
    """
    if model.lora is not None:
        with contextlib.suppress(Unknown):
            build(path, model, torch.float32)


def build_reward_model(
    path: str | Path, model: Model, head: Head, dtype: torch.dtype, language_head: bool = True
) -> RewardModel:
    """`build` with a reward head.

    Args:
        language_head: whether the model in memory keeps one.
    """
    lm = build(path, model, dtype)
    if not language_head:
        unwrap(lm).set_output_embeddings(nn.Identity())
    with torch.device("meta"):
        return RewardModel(lm, head)


def build_policy(
    lm: nn.Module, head: Head, reference: nn.Module | None, ema: float | None
) -> Policy:
    """`lm` with its critic, and the reference where that is a second copy."""
    with torch.device("meta"):
        return Policy(lm, head, reference, ema)


def key_bytes(lm: nn.Module) -> int | None:
    """Bytes of keys and values that a token leaves in a generation engine; None: not known."""
    config = unwrap(lm).config
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        each = next(lm.parameters()).element_size()
        return int(2 * config.num_hidden_layers * heads * size * each)
    except (AttributeError, TypeError):
        return None


def groups_of(tokens: int, longest: int, answers: int) -> list[Group]:
    """Prompts with `answers` answers each that fill a micro-batch of `tokens`, nearly all of them
    answer tokens: the prompts that leave most for the language head to read.

    Args:
        longest: tokens of a prompt with one answer, at most.
    """
    # What a pass takes goes by tokens: it need not go through thousands of tiny answers.
    room = max(longest - 1, tokens // MOST_ANSWERS, 1)
    groups: list[Group] = []
    while tokens > 1:
        lengths: list[int] = []
        left = tokens - 1
        while left > 0 and len(lengths) < answers:
            lengths.append(min(room, max(1, left // (answers - len(lengths)))))
            left -= lengths[-1]
        # Two prompts that begin alike would share it: each has a token of its own.
        prompt = np.full(1, len(groups))
        groups.append((prompt, [np.zeros(length, np.int64) for length in lengths]))
        tokens = left
    return groups


def training_pass(
    model: RewardModel, groups: Sequence[Group], logprobs_of: Sequence[int] | None
) -> Pass:
    """Forward and backward pass of a reward model.

    Args:
        logprobs_of: see `RewardModel.forward`.
    """
    packed = pack(groups).to("meta")

    def said() -> list[torch.Tensor]:
        scores, logp = model(packed, logprobs_of)
        return [scores] if logp is None else [scores, logp]

    return _counted(model.train(), said, len(packed.input_ids_T))


def policy_pass(policy: Policy, groups: Sequence[Group], temperature: float, entropy: bool) -> Pass:
    """Forward and backward pass of policy and critic."""
    packed = pack(groups).to("meta")

    def said() -> list[torch.Tensor]:
        found = policy(packed, temperature, with_entropy=entropy)
        return [x for x in found if x is not None]

    return _counted(policy.train(), said, len(packed.input_ids_T))


def scoring_pass(model: RewardModel, groups: Sequence[Group]) -> Pass:
    """Forward pass of a reward model that scores."""
    packed = pack(groups).to("meta")
    with torch.no_grad():
        return _counted(model.eval(), lambda: [model(packed)[0]], len(packed.input_ids_T))


def _counted(module: nn.Module, forward: Any, tokens: int) -> Pass:
    flops = FlopCounterMode(display=False)
    try:
        # Inside the counter of products: that takes some operators apart.
        with flops, _fused_attention(), _Alive(module) as alive:
            said = forward()
            ahead = flops.get_total_flops()
            if torch.is_grad_enabled():
                sum(x.sum() for x in said).backward()
    except Exception as error:  # noqa: BLE001 - an architecture may look at values, of which are none
        said = " ".join(str(error).split())[:160]
        raise Unknown(
            f"the memory of a pass depends on the values that the model reads ({said})"
        ) from None
    finally:
        module.zero_grad(set_to_none=True)
    return Pass(tokens, alive.peak, flops.get_total_flops(), ahead)


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that exist at a time, but for those of `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.peak = self._now = 0
        held = [*module.parameters(), *module.buffers()]
        self._sizes = {t.untyped_storage()._cdata: 0 for t in held}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._sizes:
            self._sizes[address] = size
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._gone, address)

    def _gone(self, address: int) -> None:
        self._now -= self._sizes.pop(address)


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Have attention keep what a fused kernel keeps. Tensors without data would take the plain
    path, with all queries times all keys in memory, that no device of ours takes."""
    plain = F.scaled_dot_product_attention

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> torch.Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)  # as kernels take it
        made: tuple[torch.Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )
        return made[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
