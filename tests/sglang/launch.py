"""Starts SGLang's own server on the CPU; runs in SGLang's environment, with SGLang's arguments.

The registry has two of SGLang's requirements for GPUs only. SGLang imports them at its start, but a
text model on torch's own attention calls nothing of them. So they are here as names: a call fails.
The rest is SGLang itself: its HTTP server, tokenizer, scheduler, cache and model.
"""

import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType

import torch

# SGLang's processes are spawned: each of them imports this file again, so these lines come first.
OPERATORS = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Kernels(ModuleType):
    """Stands for `sgl_kernel`, which has no build for this CPU."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*arguments: object, **options: object) -> None:
            raise NotImplementedError(f"sgl_kernel.{name} has no build for this CPU")

        return missing


kernels = Kernels("sgl_kernel")
kernels.__spec__ = importlib.machinery.ModuleSpec("sgl_kernel", None)
sys.modules["sgl_kernel"] = kernels

if __name__ == "__main__":
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    run_server(prepare_server_args(sys.argv[1:]))
