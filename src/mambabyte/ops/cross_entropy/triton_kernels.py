"""The Triton kernels of the cross-entropy: a row of logits lies in one program."""
# mypy: disable-error-code="no-untyped-def"
# Triton compiles these functions; what their arguments are is said by the call.

import triton
import triton.language as tl


@triton.jit
def forward(logits, targets, losses, log_sums, ignore_index, vocabulary, BLOCK: tl.constexpr):
    """The loss of one row, 0 where the target is ignored, and log sum exp(logits); NaN for a target out of bounds."""
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    values = tl.load(logits + row * vocabulary + v, mask=v < vocabulary, other=-float("inf")).to(tl.float32)
    largest = tl.max(values, 0)
    log_sum = largest + tl.log(tl.sum(tl.exp(values - largest), 0))
    target = tl.load(targets + row)
    counts, inside = target != ignore_index, (target >= 0) & (target < vocabulary)
    log_sum = tl.where(counts & ~inside, float("nan"), log_sum)
    chosen = tl.load(logits + row * vocabulary + target, mask=counts & inside, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counts, log_sum - chosen, 0.0))
    tl.store(log_sums + row, log_sum)


@triton.jit
def backward(dlosses, stride, logits, targets, log_sums, dlogits, ignore_index, vocabulary, BLOCK: tl.constexpr):
    """The gradient of one row of logits."""
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    values = tl.load(logits + row * vocabulary + v, mask=v < vocabulary, other=-float("inf")).to(tl.float32)
    target = tl.load(targets + row)
    probability = tl.exp(values - tl.load(log_sums + row))
    gradient = tl.load(dlosses + row * stride) * tl.where(v == target, probability - 1.0, probability)
    gradient = tl.where(target != ignore_index, gradient, 0.0)
    tl.store(dlogits + row * vocabulary + v, gradient, mask=v < vocabulary)
