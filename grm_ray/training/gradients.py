"""Gradients that are not to be used: what DeepSpeed keeps of them is dropped, at every stage."""

from __future__ import annotations

from typing import Any


def forget(engine: Any, stage: int) -> None:
    """Bring a DeepSpeed engine to where it was before the step's first micro-batch.

    A backward pass may have been cut short: then ZeRO's buckets are half full, and it still counts
    itself as being inside that pass.
    """
    for parameter in engine.module.parameters():
        parameter.grad = None
    engine.optimizer.zero_grad()
    if stage == 0:
        return
    optimizer = engine.optimizer
    optimizer._backward_active_depth = 0
    optimizer._remaining_grad_acc_hooks = 0
    optimizer.clear_backward_seen_flag()
    if stage == 3:
        _forget_stage_3(optimizer)
        return
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear()
    optimizer.extra_large_param_to_reduce.clear()
    optimizer.params_already_reduced[:] = [False] * len(optimizer.params_already_reduced)
    optimizer._release_preflattened_grad_buffers()
    for group in optimizer.averaged_gradients:
        optimizer.averaged_gradients[group] = None
    for group in optimizer.all_grad_tensors:
        optimizer.all_grad_tensors[group] = None
    optimizer._release_ipg_buffers()
    optimizer.micro_step_id = -1  # the next backward pass is a step's first
    if optimizer.cpu_offload:
        optimizer.reset_cpu_buffers()
        optimizer._offload_accumulated_param_ids = set()


def _forget_stage_3(optimizer: Any) -> None:
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear_params()
    for parameter in optimizer.params_already_reduced:
        optimizer.params_already_reduced[parameter] = False
    optimizer.averaged_gradients = {}
    optimizer.micro_step_id = 0
    if optimizer.offload_optimizer:
        optimizer.reset_cpu_buffers()
    coordinator = optimizer._get_param_coordinator()
    coordinator.release_backward_leftovers()
    # The order in which modules run was cut short too: it is learned anew.
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    optimizer._partition_all_parameters()
