"""Folders of ours in stock transformers, and stock folders in ours: the same logits, whatever the sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM, MambaModel, pipeline

import mambabyte as mb
from mambabyte import layers
from mambabyte.layers import NormConfig

TOLERANCE = {"atol": 1e-4, "rtol": 0}
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.fixed_dictionaries(
    {
        "d_state": st.integers(1, 9),
        "d_conv": st.integers(1, 6),
        "expand": st.integers(1, 3),
        "dt_rank": st.none() | st.integers(1, 9),
        "bias": st.booleans(),
    }
)


def bytes_like(rows: int = 2, length: int = 21) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(3))


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Random norms, biases, D and a bigger embedding, so that no tensor could be forgotten without a trace."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and "dt_" not in name:
                p.add_(torch.randn_like(p) * 0.3)
            elif "embedding" in name:
                p.normal_()
    return model


@few
@given(
    sizes=sizes,
    d_model=st.integers(2, 33),
    n_layers=st.integers(1, 3),
    tied=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
    vocab_size=st.sampled_from([256, 257, 320]),
)
def test_stock_transformers_opens_our_folder(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: dict[str, Any],
    d_model: int,
    n_layers: int,
    tied: bool,
    eps: float,
    vocab_size: int,
) -> None:
    config = mb.ByteLMConfig(
        d_model=d_model,
        layers={"mamba": layers.MambaConfig(**sizes)},
        pattern=("mamba",) * n_layers,
        norm=NormConfig(eps=eps),
        tied_head=tied,
        vocab_size=vocab_size,
    )
    model, folder = lively(mb.ByteLM(config)), tmp_path_factory.mktemp("ours")
    model.save(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert type(stock) is MambaForCausalLM
    with torch.no_grad():
        torch.testing.assert_close(stock(bytes_like()).logits, model(bytes_like())[0], **TOLERANCE)


@few
@given(
    sizes=sizes,
    hidden_size=st.integers(2, 33),
    tied=st.booleans(),
    conv_bias=st.booleans(),
    vocab_size=st.integers(256, 300),
    shard=st.sampled_from(["1KB", "1GB"]),
)
def test_stock_folders_open_in_ours(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: dict[str, Any],
    hidden_size: int,
    tied: bool,
    conv_bias: bool,
    vocab_size: int,
    shard: str,
) -> None:
    config = MambaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        state_size=sizes["d_state"],
        conv_kernel=sizes["d_conv"],
        expand=sizes["expand"],
        time_step_rank=sizes["dt_rank"] or "auto",
        tie_word_embeddings=tied,
        use_bias=sizes["bias"],
        use_conv_bias=conv_bias,
        layer_norm_epsilon=1e-3,
    )
    stock, folder = lively(MambaForCausalLM(config)), tmp_path_factory.mktemp("stock")
    stock.save_pretrained(folder, max_shard_size=shard)
    assert (folder / "model.safetensors.index.json").exists() == (shard == "1KB")
    ours = mb.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(ours(bytes_like())[0], stock(bytes_like()).logits, **TOLERANCE)


def test_a_model_saved_without_its_head_opens(tmp_path: Path) -> None:
    stock = MambaForCausalLM(MambaConfig(vocab_size=256, hidden_size=8, num_hidden_layers=1, tie_word_embeddings=True))
    stock.backbone.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(mb.load(tmp_path)(bytes_like())[0], stock(bytes_like()).logits, **TOLERANCE)
        assert isinstance(stock.backbone, MambaModel)


def test_a_stored_head_that_differs_is_not_tied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Transformers 5 decides by the weights too."""
    MambaForCausalLM(
        MambaConfig(vocab_size=256, hidden_size=8, num_hidden_layers=1, tie_word_embeddings=False)
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, stock = mb.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "says the head is tied" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(ours(bytes_like())[0], stock(bytes_like()).logits, **TOLERANCE)


def test_stock_transformers_computes_as_before_what_was_trained_in_bfloat16_and_keeps_the_record(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = lively(mb.ByteLM(mb.ByteLMConfig(d_model=8, layers={"mamba": layers.MambaConfig()}, pattern=("mamba",))))
    model.trained_dtype = torch.bfloat16
    model.save(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(stock(bytes_like()).logits, model(bytes_like())[0], **TOLERANCE)
    stock.save_pretrained(tmp_path / "again")
    assert mb.load(tmp_path / "again").trained_dtype == torch.bfloat16


def test_an_activation_that_we_lack_is_named(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=256, hidden_size=8, num_hidden_layers=1, hidden_act="gelu")
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        mb.load(tmp_path)


def test_a_small_vocabulary_is_refused(tmp_path: Path) -> None:
    MambaForCausalLM(MambaConfig(vocab_size=255, hidden_size=8, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="at least 256"):
        mb.load(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    config = mb.ByteLMConfig(d_model=16, layers={"m": layers.MambaConfig(d_state=4)}, pattern=("m", "m"))
    torch.manual_seed(1)
    lively(mb.ByteLM(config)).save(path)
    return path


def test_extra_keys_do_not_reach_the_architecture_of_an_edited_config(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    assert mb.load(folder).config.pattern == ("m", "m")
    from mambabyte.checkpoints import hf_layout

    assert hf_layout.read_config(data | {"state_size": 5}, "config.json").layers["mamba"].d_state == 5


def test_greedy_generation_is_the_same_in_both(folder: Path) -> None:
    stock, ours = AutoModelForCausalLM.from_pretrained(folder), mb.load(folder)
    ids = bytes_like(1, 9)
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, ours(ids)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(stock.generate(bytes_like(1, 9), max_new_tokens=12, do_sample=False), ids)


def test_the_text_generation_pipeline_runs(folder: Path) -> None:
    text = pipeline("text-generation", model=str(folder))("caf\u00e9 ", max_new_tokens=4, do_sample=False)
    assert text[0]["generated_text"].startswith("caf\u00e9 ")


@few
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_tokens_are_bytes(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text).input_ids
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 256


def test_every_byte_has_its_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    awkward = "\x00\r\n \t<s></s><|endoftext|>\u0100e\u0301\U0001f600 's  don't"
    assert bytes(tokenizer(awkward).input_ids) == awkward.encode()
    assert sorted(tokenizer.get_vocab().values()) == list(range(256))
    assert tokenizer.all_special_tokens == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks the old name
def test_lora_trains_on_our_folder(folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra hf is not installed: no peft")
    stock = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(
        stock, peft.LoraConfig(r=2, target_modules=["in_proj", "x_proj"], task_type="CAUSAL_LM")
    )
    model(bytes_like(), labels=bytes_like()).loss.backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) == 4
    assert all("lora_B" in name for name in moved)
