"""What stock transformers cannot express, under our own model type: the Auto classes, generate, cache and gradients."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

import mambabyte as mb
from mambabyte.hf import MambaByteForCausalLM, StateCache
from mambabyte.layers import MambaConfig, NormConfig

pytestmark = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@pytest.fixture
def original(tied: bool) -> mb.ByteLM:
    torch.manual_seed(0)
    config = mb.ByteLMConfig(
        d_model=16,
        layers={"thin": MambaConfig(d_state=3), "wide": MambaConfig(d_conv=2, expand=3)},
        pattern=("thin", "wide", "thin"),
        norm=NormConfig(kind="layer", bias=True),
        tied_head=tied,
    )
    model = mb.ByteLM(config)
    model.trained_dtype = torch.bfloat16
    with torch.no_grad():
        model.embedding.weight.normal_()
        for unit in model.layers:
            unit.norm.bias.normal_()
    return model


@pytest.fixture
def folder(original: mb.ByteLM, tmp_path: Path) -> Path:
    original.save(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder: Path) -> MambaByteForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


def bytes_like(rows: int = 2, length: int = 13) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(5))


def test_logits_are_the_models(model: MambaByteForCausalLM, original: mb.ByteLM, tied: bool) -> None:
    assert type(model) is MambaByteForCausalLM
    with torch.no_grad():
        torch.testing.assert_close(model(bytes_like()).logits, original(bytes_like())[0])
        assert torch.equal(model(bytes_like(), logits_to_keep=2).logits, model(bytes_like()).logits[:, -2:])


def test_the_base_model_gives_hidden_states(folder: Path, original: mb.ByteLM, tied: bool) -> None:
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder)(bytes_like(), output_hidden_states=True)
        torch.testing.assert_close(output.last_hidden_state, original.hidden(bytes_like())[0])
    assert len(output.hidden_states) == 4
    assert torch.equal(output.hidden_states[0], original.embedding(bytes_like()))


def test_saving_from_transformers_keeps_everything(
    model: MambaByteForCausalLM, original: mb.ByteLM, tmp_path: Path, tied: bool
) -> None:
    model.save_pretrained(tmp_path / "again")
    again = mb.load(tmp_path / "again")
    assert again.config == original.config
    assert again.trained_dtype == torch.bfloat16
    for (name, a), b in zip(again.state_dict().items(), original.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_half_precision_keeps_the_decay(folder: Path, tied: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    dtypes = {name.rpartition(".")[2]: p.dtype for name, p in model.byte_lm.layers[0].layer.named_parameters()}
    assert dtypes["A_log"] == dtypes["D"] == dtypes["dt_bias"] == torch.float32
    assert dtypes["conv_weight"] == model.byte_lm.head.weight.dtype == torch.bfloat16
    assert model(bytes_like()).logits.isfinite().all()


@pytest.mark.parametrize("search", [{"do_sample": False}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generating_with_the_cache_changes_nothing(
    model: MambaByteForCausalLM, search: dict[str, object], tied: bool
) -> None:
    cached, plain = (model.generate(bytes_like(), max_new_tokens=9, use_cache=use, **search) for use in (True, False))
    assert torch.equal(cached, plain)


def test_a_cache_continues_where_it_stopped(model: MambaByteForCausalLM, tied: bool) -> None:
    ids, cache = bytes_like(), StateCache()
    with torch.no_grad():
        parts = [model(part, cache_params=cache, use_cache=True).logits for part in ids.split([1, 5, 7], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits)
    assert cache.get_seq_length() == 13


def test_padding_on_the_left_changes_nothing(model: MambaByteForCausalLM, tied: bool) -> None:
    ids = bytes_like(1, 7)
    padded = torch.cat([torch.full((1, 4), 256), ids], dim=1)
    mask = (torch.arange(11) >= 4).long()[None]
    with torch.no_grad():
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], model(ids).logits)
    generated = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated[:, 11:], model.generate(ids, max_new_tokens=6, do_sample=False)[:, 7:])


def test_gradient_checkpointing_gives_the_same_gradients(model: MambaByteForCausalLM, tied: bool) -> None:
    model.train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(bytes_like(), labels=bytes_like()).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        switch = "activation_checkpointing_enable"  # the name from transformers 5.20 on
        getattr(model, switch if hasattr(model, switch) else "gradient_checkpointing_enable")()
    assert model.gradient_checkpointing
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_loss_is_the_next_bytes(model: MambaByteForCausalLM, tied: bool) -> None:
    output = model(bytes_like(), labels=bytes_like())
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), bytes_like()[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_a_larger_vocabulary_is_saved_and_loaded(model: MambaByteForCausalLM, tmp_path: Path, tied: bool) -> None:
    model.resize_token_embeddings(260, mean_resizing=False)
    model.save_pretrained(tmp_path / "larger")
    ours = mb.load(tmp_path / "larger")
    with torch.no_grad():
        torch.testing.assert_close(ours(bytes_like())[0], model(bytes_like()).logits)
    assert ours.config.vocab_size == AutoConfig.from_pretrained(tmp_path / "larger").vocab_size == 260


def test_a_new_model_has_our_initial_values(folder: Path, tied: bool) -> None:
    layer = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).byte_lm.layers[0].layer
    assert torch.equal(layer.A_log[0].exp().round(), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(layer.D, torch.ones_like(layer.D))


def test_tokenizer_and_pipeline_open_the_folder(folder: Path, tied: bool) -> None:
    assert AutoTokenizer.from_pretrained(folder)("\u00e9").input_ids == [0xC3, 0xA9]
    text = pipeline("text-generation", model=str(folder))("def ", max_new_tokens=4, do_sample=False)
    assert text[0]["generated_text"].startswith("def ")
