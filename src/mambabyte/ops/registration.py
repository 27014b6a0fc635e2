"""How an op's kernels become one torch op that autograd differentiates and torch.compile leaves whole.

`torch.library.custom_op` says the same in one decorator, but its first call imports the compiler: 863 modules and, with
nothing cached, four seconds of every command. The parts it is made of are public and import nothing.

To the dispatcher a derivative that an op has not is zero. A call of which one may be asked (a gradient's gradient,
forward mode, torch.func) goes by an `autograd.Function` instead, which refuses it, and which torch.func can transform.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


class KernelOp:
    """A torch op: one Python function for CPU and CUDA tensors, a fake for tracing, and a formula for its gradient.

    Raises RuntimeError where a second derivative is computed, or one in forward mode.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, ("cpu", "cuda"))(function)
        namespace, short = name.split("::")
        self._call = getattr(getattr(torch.ops, namespace), short).default
        self._function, self._has_gradient = self._as_function(_save_nothing, self._refuse), False

    def __call__(self, *arguments: Any) -> Any:
        """The op's outputs."""
        if transformed() or (not self._has_gradient and torch.is_grad_enabled()):
            return self._function.apply(*arguments)  # type: ignore[no-untyped-call]
        return self._call(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function` returns empty outputs of the right shapes and dtypes."""
        return torch.library.register_fake(self.name, function)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """The gradient: `setup_context(ctx, inputs, output)` saves, `backward(ctx, *gradients)` computes."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)
        self._function, self._has_gradient = self._as_function(setup_context, backward), True

    def _as_function(self, setup_context: Callable[..., None], backward: Callable[..., Any]) -> type[Function]:
        rules: dict[str, Callable[..., Any]] = {
            "forward": self._forward,
            "setup_context": setup_context,
            "backward": backward,
            "jvp": self._refuse,
            "vmap": self._row_by_row,
        }
        return type(self.name, (Function,), {name: staticmethod(rule) for name, rule in rules.items()})

    def _forward(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        outputs = self._call(*arguments)
        return outputs if isinstance(outputs, Tensor) else tuple(outputs)

    def _row_by_row(self, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        """torch.vmap: one call for each row."""
        rows = []
        for i in range(info.batch_size):
            row = (a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True))
            rows.append(self(*row))
        if isinstance(rows[0], Tensor):
            return torch.stack(rows), 0
        return tuple(torch.stack(outputs) for outputs in zip(*rows, strict=True)), (0,) * len(rows[0])

    def _refuse(self, *_: Any) -> NoReturn:
        op = self.name.removeprefix("mambabyte::").removesuffix("_backward")
        raise RuntimeError(
            f"{op}: its kernels are differentiated once and backward; to do it twice or in forward mode, pass "
            'backend="reference"'
        )


def kernel_op(name: str) -> Callable[[Callable[..., Any]], KernelOp]:
    """Decorator: register `function` as the torch op `name`, "mambabyte::...". No output may alias an input."""
    return lambda function: KernelOp(name, function)


def transformed() -> bool:
    """Whether torch.func or forward mode is at work; then a tensor's `requires_grad` does not say all.

    torch.compile traces torch.vmap over the op itself, and refuses torch.func.grad in words of its own.
    """
    if forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def keeps(*tensors: Tensor | None) -> bool:
    """Whether a forward over these tensors has to keep what its backward needs."""
    if not torch.is_grad_enabled():
        return False
    return transformed() or any(t is not None and t.requires_grad for t in tensors)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass
