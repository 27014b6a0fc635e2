"""The Hub, against a stand-in on this machine: what is pushed is what loads, and every refusal is a sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mambabyte as mb
from mambabyte.checkpoints import run
from mambabyte.checkpoints.model_card import TRAINING
from mambabyte.cli.app import run as command
from mambabyte.layers import MambaConfig, NormConfig
from tests.checkpoints.hub_server import Hub, serve

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hf is not installed: no huggingface_hub")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in that huggingface_hub takes for the Hub, and a cache of its own."""
    with serve() as (hub, address):
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "a-token")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield hub


def tiny(seed: int = 0, **changes: object) -> mb.ByteLM:
    torch.manual_seed(seed)
    fields = {"d_model": 8, "layers": {"mamba": MambaConfig(d_state=2)}, "pattern": ("mamba",)} | changes
    return mb.ByteLM(mb.ByteLMConfig(**fields))


def same(a: mb.ByteLM, b: mb.ByteLM) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return a.config == b.config and all(torch.equal(x, y) for x, y in pairs)


def files(hub: Hub, name: str = "owner/name", branch: str = "main") -> dict[str, bytes]:
    return hub.commits[hub.branches[name][branch]]


def test_what_is_pushed_is_what_loads(hub: Hub) -> None:
    model = tiny()
    address = model.push("owner/name")
    assert address.endswith(hub.branches["owner/name"]["main"])
    assert same(mb.load("hf://owner/name"), model)
    assert {"config.json", "model.safetensors", "tokenizer.json", "SHA256SUMS", "README.md"} <= set(files(hub))


def test_a_revision_is_a_commit_or_a_branch(hub: Hub) -> None:
    first, second, third = (tiny(seed) for seed in range(3))
    commit = first.push("owner/name").rpartition("/")[2]
    second.push("hf://owner/name")
    third.push("owner/name@try")
    assert same(mb.load(f"hf://owner/name@{commit}"), first)
    assert same(mb.load("hf://owner/name"), second)
    assert same(mb.load("hf://owner/name@try"), third)


def test_a_pickle_is_fetched_where_there_are_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    model = tiny(norm=NormConfig(kind="layer", bias=True))
    model.save(tmp_path / "published", layout="mamba-ssm")
    contents = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    hub.commit("owner/published", "main", contents | {"pytorch_model.bin.index.txt": b"", "other.bin": b"x" * 999})
    assert same(mb.load("hf://owner/published"), model)
    assert not list((tmp_path / "cache").rglob("other.bin"))


def test_old_weights_go_and_a_card_written_by_hand_stays(hub: Hub) -> None:
    hub.commit("owner/name", "main", {"README.md": b"mine", "pytorch_model.bin": b"old", "notes.txt": b"kept"})
    tiny().push("owner/name")
    assert files(hub)["README.md"] == b"mine"
    assert "pytorch_model.bin" not in files(hub)
    assert files(hub)["notes.txt"] == b"kept"


def test_a_damaged_download_is_found(hub: Hub) -> None:
    tiny().push("owner/name")
    contents = dict(files(hub))
    contents["model.safetensors"] = contents["model.safetensors"][:-1] + b"\x55"
    hub.commit("owner/name", "main", contents)
    with pytest.raises(ValueError, match=r"do not match SHA256SUMS"):
        mb.load("hf://owner/name")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hf://owner/none", "no such repository"),
        ("hf://owner/name@none", "no revision 'none'"),
        ("hf://name", "is not a model on the Hub"),
        ("hf://owner/name/more", "is not a model on the Hub"),
        ("hf://owner/../name", "is not a model on the Hub"),
        ("hf://owner/name@../main", "is not a model on the Hub"),
        ("hf://--owner/name", "Repo id|no such repository"),
        ("hf://owner/empty", "no safetensors|no such folder|no config|config.json"),
    ],
)
def test_what_is_not_there_is_a_sentence(hub: Hub, name: str, sentence: str) -> None:
    hub.commit("owner/name", "main", {"config.json": b"{}"})
    hub.commit("owner/empty", "main", {"README.md": b"nothing"})
    with pytest.raises(ValueError, match=sentence):
        mb.load(name)


def test_the_card_tells_what_the_run_says(hub: Hub, tmp_path: Path) -> None:
    model = tiny()

    def write(folder: Path) -> None:
        model.save(folder)
        position = {"step": 1200, "bytes": 9_830_400, "seconds": 5400.0, "bits_per_byte": 1.8765}
        position["figures"] = {"bits_per_byte": 1.9432}
        config = {"preset": "mambabyte-tiny", "data": ["/home/me/books"], "learning_rate": 0.001, "steps": None}
        (folder / TRAINING).write_text(json.dumps({"position": position, "config": config}))

    run.save(tmp_path / "run", 1200, write, keep=1)
    mb.load(tmp_path / "run").push("owner/name", run=tmp_path / "run")
    card = files(hub)["README.md"].decode()
    for fact in ("9,830,400", "1,200", "1.50 hours", "1.877", "| books |", '"learning_rate": 0.001', "hf://owner/name"):
        assert fact in card
    assert "| bits per byte, training, at the end | 1.877 |" in card
    assert "| bits per byte, held-out files | 1.943 |" in card
    assert "/home/me" not in card
    assert "training.json" not in files(hub)


@pytest.mark.parametrize(("layer_norm", "library"), [(False, "transformers"), (True, "mambabyte")])
def test_the_card_names_who_opens_it(hub: Hub, layer_norm: bool, library: str) -> None:
    tiny(norm=NormConfig(kind="layer", bias=True) if layer_norm else NormConfig()).push("owner/name")
    card = files(hub)["README.md"].decode()
    assert f"library_name: {library}\n" in card
    assert ("import mambabyte.hf" in card) == layer_norm


def test_the_command_line_pushes_and_fetches(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    model.trained_dtype = torch.bfloat16
    model.save(tmp_path / "model")
    assert command(["convert", str(tmp_path / "model"), "hf://owner/name", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert pushed["commit"].endswith(hub.branches["owner/name"]["main"])
    assert command(["convert", "hf://owner/name", str(tmp_path / "back")]) == 0
    assert same(mb.load(tmp_path / "back"), model)
    assert mb.load(tmp_path / "back").trained_dtype == torch.bfloat16
    capsys.readouterr()
    assert command(["info", "hf://owner/name", "--json"]) == 0
    described = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert described["parameters"] == sum(p.numel() for p in model.parameters())
