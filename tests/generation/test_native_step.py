"""The native engine: the torch step's logits; the same bits alone, in company, in one read or many, on any threads."""

import contextlib
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from mambabyte.generation import native_step
from mambabyte.generation.engine import TorchEngine, open_engine
from mambabyte.generation.native_step import NativeEngine, Weights, why_not
from mambabyte.layers import MambaConfig, NormConfig
from mambabyte.models import ByteLM, ByteLMConfig
from mambabyte.ops import panels
from mambabyte.ops.target import host_target, target_for

# float32 logits relative to the largest; the worst measured difference is 1e-6
FLOAT32 = 1e-5
TEXT = bytes((7 * i * i + 3 * i) % 256 for i in range(80))


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Torch's own threads wait for each other at every small product: slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(
    d_model: int = 48, *, norm: NormConfig | None = None, tied: bool = False, vocab: int = 256, **layer: int
) -> ByteLM:
    config = ByteLMConfig(
        d_model=d_model,
        layers={"m": MambaConfig(**layer)},
        pattern=("m", "m", "m"),
        norm=norm or NormConfig(),
        tied_head=tied,
        vocab_size=vocab,
    )
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        model = ByteLM(config)
        for parameter in model.parameters():  # norms and D away from one, biases from zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def bytewise(engine: NativeEngine | TorchEngine, text: bytes, row: int | None = None) -> np.ndarray:
    row = engine.join(engine.model.init_state()) if row is None else row
    return np.concatenate([engine.read([row], [bytes([byte])])[0].copy() for byte in text])


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = FLOAT32) -> None:
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


MODELS = {
    "plain": {},
    "odd sizes": {"d_model": 33, "d_state": 5, "d_conv": 3, "dt_rank": 3},
    "layer norm": {"norm": NormConfig(kind="layer", bias=True), "d_model": 40},
    "rms bias": {"norm": NormConfig(bias=True, eps=1e-3), "d_model": 7, "expand": 1},
    "tied head": {"tied": True, "d_conv": 1, "d_state": 1},
    "more ids": {"vocab": 300, "d_state": 24},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_torch_step(name: str) -> None:
    model = random_model(**MODELS[name])
    assert_close(bytewise(NativeEngine(model), TEXT), bytewise(TorchEngine(model), TEXT))


@pytest.mark.parametrize(("threads", "weights"), [(1, "float32"), (2, "bfloat16"), (2, "int8"), (3, "float32")])
def test_same_bits_alone_in_company_and_in_long_reads(threads: int, weights: Weights) -> None:
    model = random_model(33)
    alone = bytewise(NativeEngine(model, weights=weights), TEXT)
    engine = NativeEngine(model, weights=weights, threads=threads)
    rows = [engine.join(model.init_state()) for _ in range(3)]
    pieces = [(TEXT[:50], TEXT[:1], TEXT[:70]), (TEXT[50:51], TEXT[1:4], TEXT[70:]), (TEXT[51:60], TEXT[4:5])]
    read: list[list[np.ndarray]] = [[], [], []]
    for piece in pieces:
        for i, logits in enumerate(engine.read(rows[: len(piece)], piece)):
            read[i].append(logits.copy())
    for logits in (np.concatenate(r) for r in read):
        assert np.array_equal(logits, alone[: len(logits)])


@pytest.mark.parametrize("kept", [0, 1, 4, 6])
def test_rewind_leaves_the_bytes_before(kept: int) -> None:
    model = random_model()
    engine = NativeEngine(model)
    row = engine.join(model.init_state())
    bytewise(engine, TEXT[:5], row)
    engine.read([row], [TEXT[5:12]])
    engine.rewind(row, kept)
    after = bytewise(engine, b"xyz", row)
    assert np.array_equal(after, bytewise(NativeEngine(model), TEXT[: 5 + kept] + b"xyz")[-3:])


def test_states_pass_to_torch_and_back() -> None:
    model = random_model(33, d_conv=3)
    torch_engine, engine = TorchEngine(model), NativeEngine(model)
    row = engine.join(model.init_state())
    bytewise(engine, TEXT[:20], row)
    state = engine.state(row)
    truth = bytewise(torch_engine, TEXT[:40])[20:]
    assert_close(bytewise(torch_engine, TEXT[20:40], torch_engine.join(state)), truth)
    twin = engine.join(state)
    assert np.array_equal(bytewise(engine, TEXT[20:40], twin), bytewise(engine, TEXT[20:40], row))
    for (name, ours), (_, theirs) in zip(
        engine.state(row).named_tensors(), engine.state(twin).named_tensors(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_rows_come_and_go() -> None:
    model = random_model()
    engine = NativeEngine(model)
    rows = [engine.join(model.init_state()) for _ in range(20)]
    for i, row in enumerate(rows):
        engine.read([row], [TEXT[: i + 1]])
    size = len(engine._states)
    for row in rows[::2]:
        engine.leave(row)
    for _ in range(5):
        row = engine.join(model.init_state())
        assert np.array_equal(bytewise(engine, TEXT[:3], row), bytewise(NativeEngine(model), TEXT[:3]))
        engine.leave(row)
    after = engine.read([rows[19]], [b"!"])[0]
    assert np.array_equal(after, bytewise(NativeEngine(model), TEXT[:20] + b"!")[-1:])
    assert len(engine._states) == size, "freed slots were not used again"


class RoundedInputs(TorchFunctionMode):
    """What torch multiplies by a matrix is rounded to 16 bits first."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.nn.functional.linear:
            x, *rest = args
            scale = x.abs().amax(-1, keepdim=True) / 32767
            args = ((x / scale).round() * scale, *rest)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_narrow_weights_are_the_model_with_rounded_matrices(weights: str) -> None:
    model, rounded = random_model(), random_model()
    with torch.no_grad():
        for name, matrix in rounded.named_parameters():
            if not name.endswith(("proj.weight", "head.weight")):
                continue
            if weights == "bfloat16":
                matrix.copy_(matrix.bfloat16())
            else:
                scale = matrix.abs().amax(1, keepdim=True) / 127
                matrix.copy_((matrix / scale).round() * scale)
    narrow = bytewise(NativeEngine(model, weights=weights), TEXT)
    # a float32's last bit decides now and then which of 65,535 levels an input is rounded to
    rounding, tolerance = (RoundedInputs(), 1e-4) if weights == "int8" else (contextlib.nullcontext(), FLOAT32)
    with rounding:
        assert_close(narrow, bytewise(TorchEngine(rounded), TEXT), tolerance)
    assert np.abs(narrow - bytewise(NativeEngine(model), TEXT)).max() > 0


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["A_log", "conv_weight", "D", "in_proj.weight", "out_proj.weight", "norm.weight"])
def test_what_is_not_a_number_is_not_made_one(name: str, value: float, weights: Weights) -> None:
    """A model that has come apart must be seen to have: rounding to 8 bits once made finite logits of NaN."""
    model = random_model()
    unit = next(iter(model.units()))
    parameter = unit.norm.weight if name == "norm.weight" else unit.layer.get_parameter(name)
    parameter.data.view(-1)[5] = value
    theirs = bytewise(TorchEngine(model), b"abc")
    ours = bytewise(NativeEngine(model, weights=weights), b"abc")
    assert not (np.isfinite(ours) & ~np.isfinite(theirs)).any()


def test_a_read_of_nothing_and_ids_that_are_none() -> None:
    model = random_model()
    engine = NativeEngine(model, threads=2)
    row = engine.join(model.init_state())
    assert engine.read([], []) == []
    for wrong in ([256], [-1], []):
        with pytest.raises(ValueError, match=r"ids from|no id"):
            engine.read([row], [wrong])
    assert np.array_equal(bytewise(engine, TEXT, row), bytewise(NativeEngine(model), TEXT))


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    model = random_model()
    one, two = (bytewise(NativeEngine(model, threads=threads), TEXT) for threads in (1, 2))
    assert np.array_equal(one, two)


def test_a_new_engine_follows_the_weights_however_they_were_written() -> None:
    """Fused optimisers, `.data` and NumPy write without telling autograd, so no version can be trusted."""
    model = random_model()
    before = bytewise(NativeEngine(model), b"abc")
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    assert_close(bytewise(NativeEngine(model), b"abc"), 2 * before)
    model.head.weight.data.mul_(2.0)
    assert_close(bytewise(NativeEngine(model), b"abc"), 4 * before)
    model.head.weight.detach().numpy()[:] *= 2.0
    assert_close(bytewise(NativeEngine(model), b"abc"), 8 * before)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.tensor([list(b"abc")]))[0].square().sum().backward()
    optimiser.step()
    assert_close(bytewise(NativeEngine(model), b"abc"), bytewise(TorchEngine(model), b"abc"))


def test_a_cpu_without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_target()
    portable = target_for(host.cpu, re.sub(r"\+avx512", "-avx512", host.features))
    for module in (native_step, panels):
        monkeypatch.setattr(module, "host_target", lambda: portable)
    native_step._compiled.cache_clear()
    try:
        model = random_model(33)
        assert_close(bytewise(NativeEngine(model), TEXT[:30]), bytewise(TorchEngine(model), TEXT[:30]))
    finally:
        native_step._compiled.cache_clear()


def test_biases_of_the_projections_are_served_by_torch() -> None:
    model = random_model(16, bias=True)
    engine = open_engine(model)
    assert isinstance(engine, TorchEngine)
    with torch.no_grad():
        assert_close(bytewise(engine, TEXT[:9]), model(torch.tensor([list(TEXT[:9])]))[0][0].numpy())


def test_models_it_cannot_run_are_refused_with_a_reason() -> None:
    assert why_not(random_model()) is None
    assert "float64" in str(why_not(random_model().double()))
    assert "biases in in_proj" in str(why_not(random_model(bias=True)))
    sizes = {"a": MambaConfig(), "b": MambaConfig(d_state=3)}
    mixed = ByteLM(ByteLMConfig(d_model=16, layers=sizes, pattern=("a", "b")))
    with pytest.raises(ValueError, match="its layers differ in size"):
        NativeEngine(mixed)
    with pytest.raises(ValueError, match="weights='int4' is not one of float32, bfloat16, int8"):
        NativeEngine(random_model(), weights="int4")
