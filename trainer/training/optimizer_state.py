"""Saves and restores the exact state of optimizers and schedules: tensors for safetensors, numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

NUMBER = (bool, int, float, type(None))
PAGED = ("state1", "state2")
"""The tensors that bitsandbytes' paged optimizers keep in memory that CPU and GPU share."""


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns tensors by `param.<index>.<name>` and `group.<index>.<name>`, copied to the CPU, and numbers beside them.

    Parameters are counted through all groups. Tuples such as betas come from the recipe and are left out. JSON gives
    every float back exactly, because Python writes it with as many digits as that takes."""
    tensors, numbers = {}, {"name": type(optimizer).__name__, "params": [], "groups": []}
    for index, param in enumerate(_params(optimizer)):
        _split(f"param.{index}", optimizer.state.get(param, {}), tensors, numbers["params"])
    for index, group in enumerate(optimizer.param_groups):
        values = {n: v for n, v in group.items() if n != "params" and not isinstance(v, tuple)}
        _split(f"group.{index}", values, tensors, numbers["groups"])
    return tensors, numbers


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor],
                         numbers: Mapping[str, Any]) -> None:
    """Puts a saved state into a new optimizer over the same groups.

    It does not use `load_state_dict`, which rounds fp32 state to the type of bf16 parameters. Raises RuntimeError if
    the state is another optimizer's, ValueError if it belongs to other groups or parameters."""
    _check_fit(optimizer, numbers)
    for index, group in enumerate(optimizer.param_groups):
        group.update(numbers["groups"][index])
        for name, value in _named(f"group.{index}.", tensors).items():
            group[name] = value.to(group["params"][0].device, copy=True)
    fused = [group.get("fused") for group in optimizer.param_groups for _ in group["params"]]
    for index, param in enumerate(_params(optimizer)):
        own = {n: _placed(optimizer, param, n, t, fused[index]) for n, t in _named(f"param.{index}.", tensors).items()}
        if values := own | numbers["params"][index]:
            optimizer.state[param] = values


def schedule_state(scheduler: LambdaLR) -> dict[str, Any]:
    """Returns where the schedule is. Everything else about it follows from the recipe."""
    return {"last_epoch": scheduler.last_epoch}


def load_schedule_state(scheduler: LambdaLR, state: Mapping[str, Any]) -> None:
    """Moves a new schedule to where another one was, and the optimizer's learning rates with it.

    The rates are computed anew, because a run that was extended follows its longer schedule. Load the optimizer
    first."""
    step = state["last_epoch"]
    rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler.load_state_dict(
        scheduler.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates})
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _params(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _split(prefix: str, values: Mapping[str, Any], tensors: dict[str, Tensor], numbers: list[dict]) -> None:
    rest = {n: v for n, v in values.items() if not torch.is_tensor(v)}
    assert all(isinstance(v, NUMBER) for v in rest.values()), f"{prefix}: {rest} cannot be saved"
    numbers.append(rest)
    # Cloned: groups of an optimizer may share a tensor, and safetensors refuses shared memory.
    tensors |= {f"{prefix}.{n}": v.detach().cpu().clone().contiguous() for n, v in values.items() if torch.is_tensor(v)}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _placed(optimizer: Any, param: nn.Parameter, name: str, value: Tensor, fused: bool | None) -> Tensor:
    """Returns a copy of a saved tensor where the optimizer expects it."""
    if name == "step" and not fused:
        return value.clone()  # torch's optimizers count on the CPU, so that no step waits for the GPU; fused ones on it
    if name in PAGED and getattr(optimizer, "is_paged", False):
        return optimizer.get_state_buffer(param, dtype=value.dtype).copy_(value)
    return value.to(param.device, copy=True)


def _check_fit(optimizer: torch.optim.Optimizer, numbers: Mapping[str, Any]) -> None:
    name = type(optimizer).__name__
    if numbers["name"] != name:
        raise RuntimeError(f"The saved state is one of the optimizer {numbers['name']}, but here {name} takes its "
                           "place (the log says why). Make it work again, or train anew with another seed.")
    saved = len(numbers["params"]), len(numbers["groups"])
    here = len(_params(optimizer)), len(optimizer.param_groups)
    if saved != here:
        raise ValueError(f"The saved optimizer state has {saved[0]} parameters in {saved[1]} groups, but this adapter "
                         f"has {here[0]} in {here[1]}. Train with the recipe that it was saved with.")
