"""The CUDA scan against the reference in float64: values, states and every gradient, at awkward shapes and strides."""

import pytest
import torch
from torch import Tensor

from mambabyte.ops import selective_scan, selective_scan_step
from mambabyte.ops.selective_scan import cuda_plan

pytestmark = pytest.mark.gpu

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
# Largest ratio of the norm of an error to the norm of the exact value. 16-bit results are rounded once: 2^-9 and 2^-12.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def problem(batch: int, length: int, width: int, states: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Decays near one, as trained models have them: dt in [1e-3, 0.1], A = -1..-N with noise."""
    g = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    rows, per_state = (batch, length, width), (batch, length, states)
    return {
        "x": normal(*rows).to(dtype),
        "dt": (normal(*rows) * 0.5).to(dtype),
        "A": -torch.arange(1, states + 1, device="cuda").float() * torch.exp(0.1 * normal(width, states)),
        "B": normal(*per_state).to(dtype),
        "C": normal(*per_state).to(dtype),
        "D": normal(width),
        "z": normal(*rows).to(dtype),
        "dt_bias": normal(width) - 4,
        "initial_state": normal(batch, width, states),
    }


def run(
    tensors: dict[str, Tensor], weights: tuple[Tensor, Tensor], backend: str, **options: object
) -> dict[str, Tensor]:
    """Outputs and gradients of <y, weights[0]> + <final state, weights[1]>."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    given = {name: leaf for name, leaf in leaves.items() if name not in NAMES[:5]}
    y, final = selective_scan(*(leaves[n] for n in NAMES[:5]), **given, **options, backend=backend)
    ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
    return {"y": y.detach(), "final": final.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def check(tensors: dict[str, Tensor], resets: Tensor | None = None, **options: object) -> None:
    x = tensors["x"]
    weights = torch.randn_like(x), torch.randn(x.shape[0], *tensors["A"].shape, device="cuda")
    ours = run(tensors, weights, "cuda", resets=resets, **options)
    exact = {name: t.double() for name, t in tensors.items()}
    expected = run(exact, (weights[0].double(), weights[1].double()), "reference", resets=resets, **options)
    for name, value in expected.items():
        error = ((ours[name].double() - value).norm() / value.norm().clamp_min(1e-12)).item()
        assert error <= TOLERANCE[x.dtype], f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "width", "states"),
    [
        (2, 1, 64, 16),
        (1, 2, 1, 16),
        (2, 31, 24, 16),
        (3, 33, 20, 16),
        (2, 65, 130, 16),
        (1, 200, 96, 16),
        (2, 700, 130, 16),
        (2, 129, 67, 5),
    ],
)
def test_values_and_gradients(batch: int, length: int, width: int, states: int, dtype: torch.dtype) -> None:
    check(problem(batch, length, width, states, dtype))


@pytest.mark.parametrize("states", [1, 2, 3, 4, 8, 10, 16, 24, 32, 48, 64])
def test_every_number_of_states(states: int) -> None:
    check(problem(2, 70, 36, states, torch.float32))
    check(problem(2, 37, 20, states, torch.bfloat16))


@pytest.mark.parametrize("absent", ["D", "z", "dt_bias", "initial_state"])
def test_without_optional_tensors(absent: str) -> None:
    tensors = problem(2, 50, 48, 16, torch.float32)
    del tensors[absent]
    check(tensors)


def test_without_softplus() -> None:
    tensors = problem(2, 50, 48, 16, torch.float32)
    tensors["dt"], tensors["dt_bias"] = tensors["dt"].abs() * 0.1, tensors["dt_bias"].abs() * 0.01
    check(tensors, dt_softplus=False)


@pytest.mark.parametrize("starts", [[0], [1], [40], [0, 1, 2], [31, 32, 33], [99]])
def test_resets(starts: list[int]) -> None:
    resets = torch.zeros(2, 100, dtype=torch.bool, device="cuda")
    resets[1, starts] = True
    check(problem(2, 100, 40, 16, torch.float32), resets)


def test_large_and_small_steps() -> None:
    tensors = problem(2, 64, 32, 16, torch.float32)
    tensors["dt"] = torch.linspace(-40, 40, 64 * 2 * 32, device="cuda").view(2, 64, 32)
    check(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_resets", [False, True])
def test_segments_of_time(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, with_resets: bool) -> None:
    monkeypatch.setattr(cuda_plan, "WARPS_A_MULTIPROCESSOR", 1000)
    cuda_plan.plan.cache_clear()
    tensors = problem(2, 700, 24, 16, dtype)
    assert cuda_plan.plan(2, 700, 24, 16).segments > 4
    resets = torch.rand(2, 700, device="cuda") < 0.005 if with_resets else None
    check(tensors, resets)
    cuda_plan.plan.cache_clear()


def test_mixed_dtypes_and_strides() -> None:
    tensors = problem(2, 60, 32, 16, torch.bfloat16)
    joined = torch.randn(2, 60, 3 * 32 + 1, device="cuda").bfloat16()
    tensors["x"], tensors["z"] = joined[..., 1:33], joined[..., 33:65]
    tensors["B"] = torch.randn(2, 16, 60, device="cuda").bfloat16().transpose(1, 2)
    tensors["C"] = torch.randn(2, 60, 40, device="cuda").bfloat16()[..., 3:19]
    check(tensors)
    tensors["dt"] = tensors["dt"].float()
    check(tensors)


def test_gradients_are_the_same_bits_in_every_run() -> None:
    tensors = problem(2, 300, 200, 16, torch.bfloat16)
    weights = torch.randn_like(tensors["x"]), torch.randn(2, 200, 16, device="cuda")
    first = run(tensors, weights, "cuda")
    for _ in range(5):
        again = run(tensors, weights, "cuda")
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_rounding_the_inputs_explains_the_error() -> None:
    exact = problem(2, 400, 128, 16, torch.float32)
    rounded = {n: t.bfloat16() if n in ("x", "dt", "B", "C", "z") else t for n, t in exact.items()}
    weights = torch.randn(2, 400, 128, device="cuda").bfloat16(), torch.randn(2, 128, 16, device="cuda")
    double = weights[0].double(), weights[1].double()
    ours = run(rounded, weights, "cuda")
    truth = run({n: t.double() for n, t in exact.items()}, double, "reference")
    best = run({n: t.double() for n, t in rounded.items()}, double, "reference")
    for name, value in truth.items():
        unavoidable = best[name].to(ours[name].dtype).double()
        ratio = (ours[name].double() - value).norm() / (unavoidable - value).norm()
        assert ratio <= 1.05, f"{name}: {ratio:.3f} times the error of rounding the inputs"


def test_a_split_gives_what_the_whole_gives() -> None:
    tensors = problem(2, 150, 40, 16, torch.float32)
    whole, last = selective_scan(*(tensors[n] for n in NAMES[:5]), **{n: tensors[n] for n in NAMES[5:]})
    state, parts = tensors["initial_state"], []
    for piece in (slice(0, 1), slice(1, 64), slice(64, 149), slice(149, 150)):
        rows = {n: t[:, piece] if n in ("x", "dt", "B", "C", "z") else t for n, t in tensors.items()}
        rows["initial_state"] = state
        y, state = selective_scan(*(rows[n] for n in NAMES[:5]), **{n: rows[n] for n in NAMES[5:]})
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("states", [1, 5, 16, 64])
def test_step_is_a_scan_of_one_position(states: int, dtype: torch.dtype) -> None:
    tensors = problem(7, 1, 50, states, dtype)
    y, last = selective_scan(*(tensors[n] for n in NAMES[:5]), **{n: tensors[n] for n in NAMES[5:]})
    row = {n: t[:, 0] if n in ("x", "dt", "B", "C", "z") else t for n, t in tensors.items()}
    state = row.pop("initial_state").clone()
    out = selective_scan_step(state, *(row[n] for n in NAMES[:5]), **{n: row[n] for n in NAMES[5:8]}, backend="cuda")
    torch.testing.assert_close(out, y[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_positions_with_no_step_leave_the_state_alone() -> None:
    tensors = problem(3, 20, 32, 16, torch.bfloat16)
    accepted = torch.tensor([0, 7, 20], device="cuda")
    late = torch.arange(20, device="cuda")[None] >= accepted[:, None]
    tensors["dt"] = tensors["dt"].masked_fill(late[..., None], -torch.inf)
    _, last = selective_scan(*(tensors[n] for n in NAMES[:5]), **{n: tensors[n] for n in NAMES[5:]})
    for row, length in enumerate(accepted.tolist()):
        cut = {n: t[row : row + 1, :length] if n in ("x", "dt", "B", "C", "z") else t for n, t in tensors.items()}
        cut["initial_state"] = tensors["initial_state"][row : row + 1]
        _, expected = selective_scan(*(cut[n] for n in NAMES[:5]), **{n: cut[n] for n in NAMES[5:]})
        assert torch.equal(last[row], expected[0])


def test_compiled_by_torch() -> None:
    tensors = problem(2, 64, 32, 16, torch.float32)
    weights = torch.randn_like(tensors["x"]), torch.randn(2, 32, 16, device="cuda")
    plain = run(tensors, weights, "cuda")
    torch._dynamo.reset()
    scan = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y, final = scan(*(leaves[n] for n in NAMES[:5]), **{n: leaves[n] for n in NAMES[5:]})
    ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
    assert torch.equal(y, plain["y"])
    assert all(torch.equal(leaf.grad, plain[f"d{name}"]) for name, leaf in leaves.items())
