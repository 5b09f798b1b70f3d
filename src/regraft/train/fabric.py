"""Lightning Fabric, made from our config: devices, precision, processes."""

from __future__ import annotations

import atexit
import gc
import os
from typing import Any

import torch
from torch import Tensor, nn

from regraft.config import RuntimeConfig
from regraft.errors import InputError, MissingExtraError
from regraft.machine import rank, world_size


def make_fabric(runtime: RuntimeConfig) -> Any:
    """Return a launched `lightning_fabric.Fabric`; sets the CPU threads of this process as well.

    Raises:
        MissingExtraError: Lightning Fabric is not installed.
        InputError: The accelerator asked for is not there.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment
    except ImportError as error:
        raise MissingExtraError("lightning-fabric", "train", "training") from error
    accelerator = device_of(runtime).type
    # Under torchrun the environment says how many processes there are, not the config.
    world, devices = world_size(), runtime.devices
    if world > 1:
        rank()
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    nodes = max(1, world // devices)
    # What a scheduler sets for a job of several tasks is no world: only torchrun makes one.
    alone = [LightningEnvironment()] if world == 1 else []
    precision = _precision(runtime.precision)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        plugins=[*alone, *precision.pop("plugins", ())],
        **precision,
    )
    fabric.launch()
    if devices * nodes > 1:
        atexit.unregister(_leave)  # once, however many runs there are
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Leave the group of processes, whose threads Gloo does not end by itself: Python would abort."""
    gc.collect()  # a network set up for several processes holds the group, often in a circle
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device_of(runtime: RuntimeConfig) -> torch.device:
    """Return the device of a process, for what needs no Fabric; sets its CPU threads as well.

    Raises:
        InputError: The accelerator is not there.
    """
    there = torch.cuda.is_available()
    if runtime.accelerator == "cuda" and not there:
        raise InputError("--accelerator cuda: torch sees no CUDA device; use cpu or auto")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    return torch.device("cuda" if there and runtime.accelerator != "cpu" else "cpu")


def _precision(name: str) -> dict[str, Any]:
    """Return the arguments of Fabric for a precision."""
    if name != "64-true":
        return {"precision": name}
    from lightning_fabric.plugins import DoublePrecision

    class Double(DoublePrecision):
        # Fabric's own rounds the outputs to float32, and with them the loss and its gradients.
        def convert_output(self, data: Any) -> Any:
            return data

    return {"plugins": [Double()]}


def cast(x: Tensor, fabric: Any) -> Tensor:
    """Return images in the dtype that a model set up by `fabric` computes in; nodes as they are."""
    double = x.is_floating_point() and fabric._precision.precision == "64-true"
    return x.double() if double else x


def laid_out(model: nn.Module, runtime: RuntimeConfig) -> nn.Module:
    """Return the network as it is trained: laid out in memory, in place, and compiled."""
    if runtime.channels_last:
        model.to(memory_format=torch.channels_last)  # pyrefly: ignore
    return torch.compile(model) if runtime.compile else model  # pyrefly: ignore
