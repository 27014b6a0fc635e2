"""mamba-ssm folders: a plain forward from mamba-ssm's definition agrees, with the quirks of the published weights."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mambabyte as mb
from mambabyte.checkpoints.model_folder import open_folder, write_folder

D, E, N, W, R = 16, 32, 4, 4, 1


def published(
    n_layer: int = 3,
    *,
    layer_norm: bool = True,
    tied: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random tensors under the names, in the shapes and in the order of a MambaLMHeadModel."""
    g = torch.Generator().manual_seed(n_layer)
    rand = lambda *shape: (torch.randn(*shape, generator=g) * 0.3).to(dtype)  # noqa: E731
    norm = lambda name: {f"{name}.weight": 1 + rand(D)} | ({f"{name}.bias": rand(D)} if layer_norm else {})  # noqa: E731
    state = {"backbone.embedding.weight": rand(256, D)}
    for i in range(n_layer):
        mixer = f"backbone.layers.{i}.mixer"
        state |= {
            f"{mixer}.A_log": rand(E, N),
            f"{mixer}.D": rand(E),
            f"{mixer}.in_proj.weight": rand(2 * E, D),
            **({f"{mixer}.in_proj.bias": rand(2 * E)} if bias else {}),
            f"{mixer}.conv1d.weight": rand(E, 1, W),
            f"{mixer}.conv1d.bias": rand(E),
            f"{mixer}.x_proj.weight": rand(R + 2 * N, E),
            f"{mixer}.dt_proj.weight": rand(E, R),
            f"{mixer}.dt_proj.bias": rand(E),
            f"{mixer}.out_proj.weight": rand(D, E),
            **({f"{mixer}.out_proj.bias": rand(D)} if bias else {}),
        }
        state |= norm(f"backbone.layers.{i}.norm")
    state |= norm("backbone.norm_f")
    return state | {"lm_head.weight": state["backbone.embedding.weight"] if tied else rand(256, D)}


def forward(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits by mamba-ssm's definition: Block of mamba_simple.py around selective_scan_ref, one position at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        if bias is not None:
            return F.layer_norm(x, (D,), weight, bias, 1e-5)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def mixer(u: Tensor, p: str) -> Tensor:
        x, z = linear(u, f"{p}.in_proj").transpose(1, 2).chunk(2, dim=1)
        x = F.conv1d(x, state[f"{p}.conv1d.weight"], state[f"{p}.conv1d.bias"], padding=W - 1, groups=E)
        x = F.silu(x[..., : u.shape[1]])
        dt, B, C = (x.transpose(1, 2) @ state[f"{p}.x_proj.weight"].T).split([R, N, N], dim=-1)
        dt = F.softplus(dt @ state[f"{p}.dt_proj.weight"].T + state[f"{p}.dt_proj.bias"])
        A, h, ys = -torch.exp(state[f"{p}.A_log"]), u.new_zeros(len(u), E, N), []
        for t in range(u.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * x[:, :, t, None]
            ys.append((h * C[:, t, None]).sum(-1) + state[f"{p}.D"] * x[:, :, t])
        return linear(torch.stack(ys, dim=1) * F.silu(z.transpose(1, 2)), f"{p}.out_proj")

    residual = state["backbone.embedding.weight"][ids]
    for i in range(sum(name.endswith("A_log") for name in state)):
        residual = residual + mixer(norm(residual, f"backbone.layers.{i}.norm"), f"backbone.layers.{i}.mixer")
    return norm(residual, "backbone.norm_f") @ state["lm_head.weight"].T


def write(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """A folder as published: pickle and config, right unless changed."""
    config = {
        "d_model": D,
        "n_layer": sum(name.endswith("A_log") for name in state),
        "vocab_size": 256,
        "ssm_cfg": {"d_state": N},
        "rms_norm": "backbone.norm_f.bias" not in state,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "tie_embeddings": state["lm_head.weight"] is state["backbone.embedding.weight"],
    }
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def ids() -> Tensor:
    return torch.randint(0, 256, (2, 23), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_those_of_mamba_ssm(
    layer_norm: bool, tied: bool, bias: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = published(layer_norm=layer_norm, tied=tied, bias=bias)
    model = mb.load(write(tmp_path, state))
    with torch.no_grad():
        torch.testing.assert_close(model(ids())[0], forward(state, ids()), atol=1e-4, rtol=0)
    assert model.config.tied_head == tied
    assert not caplog.records


def test_safetensors_open_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = published()
    save_file(state, write(tmp_path, state) / "model.safetensors")
    (tmp_path / "pytorch_model.bin").unlink()
    with torch.no_grad():
        torch.testing.assert_close(mb.load(tmp_path)(ids())[0], forward(state, ids()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"n_layer": 53}, "n_layer = 53, but by the weights it is 5"),
        ({"rms_norm": True}, "rms_norm = True, but by the weights it is False"),
        ({"tie_embeddings": True}, "tie_embeddings = True, but by the weights it is False"),
        ({"d_model": 1024}, "d_model = 1024, but by the weights it is 16"),
        ({"vocab_size": 50277}, "vocab_size = 50280, but by the weights it is 256"),
        ({"ssm_cfg": {"d_state": 16}}, "ssm_cfg.d_state = 16, but by the weights it is 4"),
        ({"ssm_cfg": {"dt_rank": 3}}, "ssm_cfg.dt_rank = 3, but by the weights it is auto"),
        ({"ssm_cfg": {"bias": True}}, "ssm_cfg.bias = True, but by the weights it is False"),
        ({"ssm_cfg": {"conv_bias": False}}, "ssm_cfg.conv_bias = False, but by the weights it is True"),
        ({"ssm_cfg": {"expnad": 2, "dt_min": 0.01}}, "ssm_cfg.expnad is ignored"),
        ({"pad_id": 0}, "pad_id = 0 is ignored"),
        ({"n_layer": "many"}, "n_layer = many"),
    ],
)
def test_the_weights_decide_and_each_disagreement_is_one_line(
    changes: dict[str, Any], note: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = published(5)
    with caplog.at_level(logging.WARNING, "mambabyte"):
        model = mb.load(write(tmp_path, state, **changes))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert note in caplog.text
    assert torch.equal(model.layers[4].norm.bias, state["backbone.layers.4.norm.bias"])


def test_all_56_layers_compute_what_mamba_ssm_does(tmp_path: Path) -> None:
    """In float64, for random weights as deep as this amplify the rounding of float32."""
    state = published(56)
    model = mb.load(write(tmp_path, state, n_layer=53, rms_norm=True, pad_id=0), dtype=torch.float64)
    assert len(model.layers) == 56
    with torch.no_grad():
        expected = forward({name: tensor.double() for name, tensor in state.items()}, ids())
        torch.testing.assert_close(model(ids())[0], expected, atol=1e-4, rtol=0)


def test_a_rank_spelt_out_is_no_disagreement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mb.load(write(tmp_path, published(), ssm_cfg={"dt_rank": R, "layer": "Mamba1", "use_fast_path": True}))
    assert not caplog.records


def test_no_arguments_of_the_layer_are_its_defaults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = published()
    model = mb.load(write(tmp_path, state, ssm_cfg=None))
    with torch.no_grad():
        torch.testing.assert_close(model(ids())[0], forward(state, ids()), atol=1e-4, rtol=0)
    assert not caplog.records


def test_a_convolution_without_bias_gets_one_of_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {n: torch.zeros_like(t) if n.endswith("conv1d.bias") else t for n, t in published().items()}
    folder = write(tmp_path, state, ssm_cfg={"conv_bias": False})
    torch.save({n: t for n, t in state.items() if not n.endswith("conv1d.bias")}, folder / "pytorch_model.bin")
    with torch.no_grad():
        torch.testing.assert_close(mb.load(folder)(ids())[0], forward(state, ids()), atol=1e-4, rtol=0)
    assert not caplog.records
    write(tmp_path / "says nothing", state)
    (folder / "pytorch_model.bin").replace(tmp_path / "says nothing" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"conv1d\.bias' is missing"):
        mb.load(tmp_path / "says nothing")


@pytest.mark.parametrize("suffix", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("name", ["lm_head.weight", "backbone.layers.1.mixer.in_proj.weight"])
def test_a_float8_tensor_is_named(name: str, suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder, state = write(tmp_path, published(), tie_embeddings=True), published()
    (folder / "pytorch_model.bin").unlink()
    state[name] = state[name].to(torch.float8_e4m3fn)
    (save_file if suffix.endswith("safetensors") else torch.save)(state, folder / suffix)
    with pytest.raises(ValueError, match=f"tensor '{name}' is .*, where a floating-point dtype is needed"):
        mb.load(folder)


def test_the_released_sizes_are_the_preset() -> None:
    from mambabyte.checkpoints import mamba_ssm_layout

    config = mamba_ssm_layout.config_json(mb.PRESETS["mambabyte-374m"])
    assert (config["n_layer"], config["rms_norm"], config["tie_embeddings"]) == (56, False, False)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_import_and_export_round_trip_bit_for_bit(
    layer_norm: bool, tied: bool, bias: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = published(layer_norm=layer_norm, tied=tied, bias=bias, dtype=dtype)
    middle, end = tmp_path / "middle", tmp_path / "end"
    opened = open_folder(write(tmp_path / "start", state))
    write_folder(middle, opened.config, opened, trained=None)
    assert json.loads((middle / "config.json").read_text())["model_type"] == ("mambabyte" if layer_norm else "mamba")
    opened = open_folder(middle)
    write_folder(end, opened.config, opened, "mamba-ssm", trained=None)
    back = torch.load(end / "pytorch_model.bin", weights_only=True)
    assert list(back) == list(state)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(back.values(), state.values(), strict=True))
    sizes = [(tmp_path / name / "pytorch_model.bin").stat().st_size for name in ("start", "end")]
    assert sizes[1] < 1.05 * sizes[0]  # a tied head once, no mapped file behind a tensor


def test_half_precision_weights_load_with_a_float32_decay(tmp_path: Path) -> None:
    layer = mb.load(write(tmp_path, published(dtype=torch.float16))).layers[0].layer
    assert (layer.A_log.dtype, layer.in_proj.weight.dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg.layer is 'Mamba2'"),
        ({"ssm_cfg": 3}, "ssm_cfg must be a table"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx is set"),
        ({"d_intermediate": 64}, "d_intermediate is set"),
    ],
)
def test_what_is_no_stack_of_mamba_1_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        mb.load(write(tmp_path, published(), **changes))


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        (
            "backbone.layers.1.mixer.D",
            torch.zeros(E + 1),
            r"mixer\.D' has shape \[33\], where .* asks for \[32\]",
        ),
        ("backbone.layers.1.mixer.D", torch.zeros(E, dtype=torch.int32), r"mixer\.D' is torch\.int32"),
        ("backbone.layers.1.mixer.D", None, r"mixer\.D' is missing"),
        ("backbone.layers.1.mixer.in_proj.bias", torch.zeros(2 * E), r"in_proj\.bias' belongs to no part"),
        ("backbone.layers.1.norm.bias", None, r"layers\.1\.norm\.bias' is missing"),
        ("backbone.layers.999999.mixer.D", torch.zeros(E), "at most 4096 layers"),
        ("backbone.layers.40.mixer.D", torch.zeros(E), "layers, but there are"),
        ("backbone.layers.0.mixer.A_log", torch.zeros(E + 1, N), "no multiple of the model's width 16"),
        ("backbone.layers.0.mixer.A_log", torch.zeros(E), "no shape it can have"),
        ("backbone.layers.0.mixer.A_log", torch.zeros(E, 0), "no shape it can have"),
        ("backbone.embedding.weight", torch.zeros(255, D), "has 255 rows"),
        ("backbone.embedding.weight", None, "lack 'backbone.embedding.weight'"),
    ],
)
def test_a_wrong_tensor_is_a_sentence(name: str, tensor: Tensor | None, sentence: str, tmp_path: Path) -> None:
    state = published()
    if tensor is None:
        state.pop(name)
    else:
        state[name] = tensor
    folder = write(tmp_path, published())
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=sentence):
        mb.load(folder)


def test_a_model_that_mamba_ssm_cannot_hold_is_refused(tmp_path: Path) -> None:
    from mambabyte.layers import MambaConfig, NormConfig

    config = mb.ByteLMConfig(d_model=8, layers={"m": MambaConfig()}, pattern=("m",), norm=NormConfig(eps=1e-3))
    with pytest.raises(ValueError, match="cannot hold this model: its norm is neither"):
        write_folder(tmp_path, config, mb.ByteLM(config).state_dict(), "mamba-ssm", trained=None)
    assert not list(tmp_path.iterdir())
