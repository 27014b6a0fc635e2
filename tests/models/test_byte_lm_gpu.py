"""A whole model on a GPU: the values, gradients and steps of the same model on a CPU."""

import pytest
import torch

from mambabyte.models import ByteLM
from mambabyte.models.presets import mambabyte
from mambabyte.training.loss import summed_nats

pytestmark = pytest.mark.gpu


def twins() -> tuple[ByteLM, ByteLM]:
    torch.manual_seed(0)
    cpu = ByteLM(mambabyte(64, 3))
    gpu = ByteLM(mambabyte(64, 3))
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu.cuda()


def test_logits_and_gradients_are_those_of_the_cpu() -> None:
    cpu, gpu = twins()
    ids = torch.randint(0, 256, (2, 77))
    resets = torch.rand(2, 77) < 0.05
    expected, _ = cpu(ids, resets=resets)
    logits, _ = gpu(ids.cuda(), resets=resets.cuda())
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (logits * weights.cuda()).sum().backward()
    for (name, ours), theirs in zip(gpu.named_parameters(), cpu.parameters(), strict=True):
        assert ours.grad is not None, name
        error = (ours.grad.cpu() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_continue_a_forward(dtype: torch.dtype) -> None:
    _, model = twins()
    model.compute_dtype = dtype
    ids = torch.randint(0, 256, (3, 40), device="cuda")
    with torch.no_grad():
        whole, _ = model(ids)
        _, state = model(ids[:, :30])
        rows = [model.step_(ids[:, t], state) for t in range(30, 40)]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(torch.stack(rows, 1), whole[:, 30:], rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings(
    "default"
)  # what torch's compiler has to say about itself and this machine is no fault here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_whole_it_trains_as_it_does_eagerly(dtype: torch.dtype) -> None:
    _, model = twins()
    model.compute_dtype = dtype
    ids = torch.randint(0, 256, (2, 78), device="cuda")
    resets = torch.rand(2, 77, device="cuda") < 0.05

    def nats(inputs: torch.Tensor, targets: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
        return summed_nats(model(inputs, resets=resets)[0], targets)

    torch._dynamo.reset()
    compiled = torch.compile(nats, fullgraph=True)
    case, parameters = (ids[:, :-1], ids[:, 1:], resets), dict(model.named_parameters())
    (loss, gradients), (expected, exact) = (
        (total, torch.autograd.grad(total, list(parameters.values()))) for total in (compiled(*case), nats(*case))
    )
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for name, ours, theirs in zip(parameters, gradients, exact, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < tolerance, f"{name}: {error:.1e}"
