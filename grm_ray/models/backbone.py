"""Causal language models as both trainers use them: loading, LoRA, merged weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Dtype, Lora, Model
from grm_ray.data.files import looks_like_hub_id
from grm_ray.data.packing import Packed
from grm_ray.models.embedded import EMBEDDED_NAME as EMBEDDED


def resolve(path: str) -> str:
    """The folder (or hub id) behind a config's model path.

    Raises:
        ConfigError: when it is a folder that does not exist or holds no model.
    """
    if path == EMBEDDED:
        from grm_ray.models.embedded import embedded_model_path

        try:
            return str(embedded_model_path())
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if is_hub_id(path):
        return path
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"model folder {path} does not exist (write {EMBEDDED} for the embedded model)"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model folder {path} has no config.json: it is not a Hugging Face model")
    refuse_pickles(folder)
    return str(folder)


def refuse_pickles(folder: Path) -> None:
    """That weights, if there are any, are in safetensors.

    Raises:
        ConfigError: they are pickles, which run whatever code they hold when they are read.
    """
    pickles = sorted(p.name for kind in ("bin", "pt", "pth") for p in folder.glob(f"*.{kind}"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model folder {folder}: its weights are a pickle ({pickles[0]}), which can run any "
            "code when it is loaded; if you trust its author, convert it once: python -c "
            '"from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )


def is_hub_id(path: str) -> bool:
    """`owner/name` that is no folder here."""
    looks = looks_like_hub_id(path) and path.strip("/") == path
    # `runs/x` is a run's own output, and with a folder `models` here, `models/x` is one in it.
    local = path.startswith("runs/") or Path(path.split("/")[0]).is_dir()
    return looks and not local and not Path(path).exists()


def unsupported(config: dict[str, Any]) -> str | None:
    """What of a model's config the log-probs of this project would get wrong; None: nothing.

    Log-probs are taken as softmax(hidden @ W): a model that bends or scales its logits would
    train on another law than the one it samples from. `probe` looks at what comes out; this is
    told before anything is loaded.
    """
    bends = [
        key
        for key in ("final_logit_softcapping", "attn_logit_softcapping")
        if config.get(key) is not None
    ]
    bends += [k for k in ("logit_scale", "logits_scaling") if config.get(k, 1.0) not in (None, 1.0)]
    bends += ["is_encoder_decoder"] if config.get("is_encoder_decoder") else []
    return f"its config sets {', '.join(bends)}, which is not supported yet" if bends else None


def resolve_dtype(dtype: Dtype) -> Literal["bfloat16", "float32"]:
    """What "auto" means on the hardware of this process."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if torch.cuda.is_available() or _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    """Whether this CPU does. With AVX-512 alone oneDNN has bfloat16 kernels that convert to and
    fro, a third as fast as float32 (28 against 87 GFLOP/s a core on an Ice Lake Xeon)."""
    can = torch.cpu.get_capabilities()
    if can.get("architecture") == "x86_64":
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub id.

    Raises:
        ValueError: it is not there or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file makes many kinds, all of them the user's to mend
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: its tokenizer cannot be loaded ({said})") from None


def check_same_vocabulary(path: str, reference: str, model: Model) -> None:
    """That a reference model reads the policy's tokens.

    Args:
        path: of the policy's files.
        model: says whether code from the hub may run.

    Raises:
        ConfigError: it gives other numbers to them, or has other tokens.
    """
    vocabularies = [
        load_tokenizer(resolve(p), model.trust_remote_code).get_vocab() for p in (path, reference)
    ]
    if vocabularies[0] != vocabularies[1]:
        raise ConfigError(
            f"ppo.kl.reference: {reference} has a different vocabulary from policy.path: "
            f"{model.path}; a reference must use the policy's tokens"
        )


def load_causal_lm(
    model: Model,
    path: str | None = None,
    language_head: bool = True,
    beside: Collection[str] = (),
) -> nn.Module:
    """`model` with its language head, LoRA applied, ready to train; eager weights in its dtype.

    Args:
        language_head: whether the files must have one; without, it is left as noise.
        beside: names of tensors in the files that belong to no language model.

    Raises:
        ConfigError: weights that are missing or left over, or a model of a kind that is not
            supported.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from grm_ray.models import attention, probe

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing and left over is judged here
    try:
        lm, found = AutoModelForCausalLM.from_pretrained(
            path or resolve(model.path),
            dtype=getattr(torch, resolve_dtype(model.dtype)),
            attn_implementation=attention.NAME,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file, a model of another kind: all the user's to mend
        raise ConfigError(f"model {model.path}: cannot be loaded ({probe.reason(error)})") from None
    finally:
        logging.set_verbosity(before)
    _check_weights(lm, found, model.path, language_head, beside)
    wrong = unsupported(lm.config.to_dict())
    if wrong:
        raise ConfigError(f"model {model.path}: {wrong}")
    lm.config.use_cache = False
    wrong = probe.difference(lm)
    if wrong:
        raise ConfigError(f"model {model.path}: {wrong}; it is not supported yet")
    if model.lora is not None:
        lm = apply_lora(lm, model.lora)
    if model.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if model.lora is not None:
            lm.enable_input_require_grads()
    return lm


def _check_weights(
    lm: nn.Module,
    found: dict[str, Any],
    path: str,
    language_head: bool,
    beside: Collection[str],
) -> None:
    missing = set(found["missing_keys"])
    if not language_head:
        speaking = lm.get_output_embeddings()
        missing -= {
            f"{name}.{leaf}"
            for name, module in lm.named_modules()
            if module is speaking
            for leaf, _ in module.named_parameters()
        }
    left = {n for n in set(found["unexpected_keys"]) - set(beside) if not n.endswith("inv_freq")}
    if missing or left:
        raise ConfigError(
            f"model {path}: the backbone's weights do not fit: missing {sorted(missing)[:5]} "
            f"(they would be random), unexpected {sorted(left)[:5]}"
        )


def apply_lora(lm: nn.Module, lora: Lora) -> nn.Module:
    """`lm` as a PEFT model with one trainable adapter; everything else frozen.

    Raises:
        ConfigError: `lora.targets` names something else than linear layers below the language
            head.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    layers, speaking = lm.config.num_hidden_layers, lm.get_output_embeddings()
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        layers_to_transform=None
        if lora.last_layers is None
        else list(range(max(0, layers - lora.last_layers), layers)),
    )
    try:
        with warnings.catch_warnings():  # of what PEFT sets right itself, or is refused below
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            # PEFT would keep adapters in fp32; DeepSpeed's bf16 casts every parameter anyway.
            adapted = get_peft_model(lm, adapter, autocast_adapter_dtype=False)
    except ValueError as error:  # no module, or not a linear one, behind the targets
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"lora.targets: {lora.targets} does not fit the model ({said})") from None
    found = adapted.base_model.targeted_module_names
    missed = [t for t in lora.targets if not any(f".{name}".endswith(f".{t}") for name in found)]
    if missed:  # PEFT passes over them without a word
        raise ConfigError(f"lora.targets: the model has no linear layer {', '.join(missed)}")
    for name in found:
        layer = unwrap(adapted).get_submodule(name).get_base_layer()
        # The language head's weight is read without calling the layer, and so without its adapter.
        if layer is speaking or not isinstance(layer, nn.Linear | Conv1D):
            raise ConfigError(
                f"lora.targets: {name} cannot have an adapter; name linear layers below the "
                "language head"
            )
    return adapted


def is_lora(lm: nn.Module) -> bool:
    """Whether the model carries a PEFT adapter."""
    return hasattr(lm, "peft_config")


def unwrap(lm: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model (or itself)."""
    return lm.get_base_model() if is_lora(lm) else lm


def hidden_states(lm: nn.Module, packed: Packed) -> torch.Tensor:
    """Last hidden state (after the final norm) of every token of a packed sequence, `(T, H)`."""
    base = unwrap(lm)
    backbone = getattr(base, base.base_model_prefix)
    return backbone(
        input_ids=packed.input_ids_T[None],
        position_ids=packed.position_ids_T[None],
        use_cache=False,
        packed=packed,
    ).last_hidden_state[0]


def adapter_off(lm: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """With LoRA, the frozen starting model: the policy's reference without a second copy."""
    return lm.disable_adapter()


def merged_weights(lm: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(transformers name, weight) of `lm` with its adapter merged in; `lm` is left as it is.

    The sum is taken in fp32 and rounded once, so that it does not depend on the merge order.
    """
    base = unwrap(lm)
    layers = {n: m for n, m in base.named_modules() if hasattr(m, "get_delta_weight")}
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        weight = parameter.detach()
        if ".base_layer." in name:
            module_name, _, leaf = name.partition(".base_layer.")
            name = f"{module_name}.{leaf}"
            layer = layers.get(module_name)
            if layer is not None and leaf == "weight":
                with torch.no_grad():
                    (adapter,) = layer.active_adapters
                    down = layer.lora_A[adapter].weight.float()
                    up = layer.lora_B[adapter].weight.float()
                    scale = layer.scaling[adapter]
                    # GPT-2's layers (`Conv1D`) hold their weights transposed.
                    product = (down.T, up.T) if layer.fan_in_fan_out else (up, down)
                    weight = torch.addmm(weight.float(), *product, alpha=scale).to(parameter.dtype)
        yield name, weight


def trained_weights(lm: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """`merged_weights` without the blocks that hold no adapter: they are as they were loaded.

    A block (all of `layers.0.self_attn`, say) goes whole or not at all, because engines fuse the
    matrices of a block and cannot take a part of one.
    """
    if not is_lora(lm):
        yield from merged_weights(lm)
        return
    adapted = {
        name.rpartition(".")[0]
        for name, module in unwrap(lm).named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for name, weight in merged_weights(lm):
        if name.rpartition(".")[0].rpartition(".")[0] in adapted:
            yield name, weight
