"""How an op's kernels become one torch op that autograd differentiates and torch.compile leaves whole.

`torch.library.custom_op` says the same in one decorator, but its first call imports the compiler: 863 modules and, with
nothing cached, four seconds of every command. The parts it is made of are public and import nothing.
"""

from collections.abc import Callable
from typing import Any

import torch


class KernelOp:
    """A torch op: one Python function for CPU and CUDA tensors, a fake for tracing, and a formula for its gradient."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, ("cpu", "cuda"))(function)
        namespace, short = name.split("::")
        self._call = getattr(getattr(torch.ops, namespace), short).default

    def __call__(self, *arguments: Any) -> Any:
        """The op's outputs."""
        return self._call(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function` returns empty outputs of the right shapes and dtypes."""
        return torch.library.register_fake(self.name, function)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """The gradient: `setup_context(ctx, inputs, output)` saves, `backward(ctx, *gradients)` computes."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def kernel_op(name: str) -> Callable[[Callable[..., Any]], KernelOp]:
    """Decorator: register `function` as the torch op `name`, "mambabyte::...". No output may alias an input."""
    return lambda function: KernelOp(name, function)
