"""`mambabyte generate`: what is printed, where, and how it ends."""

import base64
import io
import json
import signal
import subprocess
import sys

import pytest
import torch

from mambabyte.checkpoints import save_model
from mambabyte.cli.app import run
from mambabyte.data import Subwords
from mambabyte.generation import generate
from mambabyte.models import SubwordLM
from tests.generation.conftest import tiny_model

PROMPT = "naïve "


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("generate") / "model"
    save_model(model, path)
    return str(path)


class Terminal(io.TextIOWrapper):
    """A stdout that says it is a terminal; `interrupt_after` presses Ctrl-C at that many flushes."""

    def __init__(self, interrupt_after=-1):
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding="utf-8")
        self.left = interrupt_after

    def isatty(self):
        return True

    @property
    def buffer(self):
        return self

    def write(self, data):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return self.raw_bytes.write(data if isinstance(data, bytes) else data.encode())

    def flush(self):
        pass


def printed(capfdbinary, *arguments):
    assert run(["generate", *arguments]) == 0
    return capfdbinary.readouterr().out


def test_json_has_the_bytes_of_the_library(model, folder, capfdbinary):
    out = printed(
        capfdbinary, folder, "--prompt", PROMPT, "--max-bytes", "40", "--seed", "7", "--top-k", "50", "--json"
    )
    result = json.loads(out.splitlines()[-1])
    expected = generate(model, PROMPT, max_bytes=40, seed=7, top_k=50)
    assert base64.b64decode(result["bytes"]) == expected
    assert result["text"] == expected.decode("utf-8", "replace")
    assert result["bytes_per_second"] > 0
    assert (result["end"], result["seed"], result["prompt_bytes"]) == ("limit", 7, 7)
    assert (result["engine"], result["weights"]) == ("native", "float32")


def test_on_a_cpu_a_run_in_bfloat16_generates_in_float32_unless_asked(model, folder, capfdbinary, tmp_path):
    trained = tiny_model()
    trained.trained_dtype = torch.bfloat16
    save_model(trained, tmp_path / "model")
    options = ("--prompt", PROMPT, "--max-bytes", "40", "--seed", "7", "--device", "cpu", "--json")
    plain, result, asked = (
        json.loads(printed(capfdbinary, *arguments, *options).splitlines()[-1])
        for arguments in ([folder], [str(tmp_path / "model")], [str(tmp_path / "model"), "--weights", "bfloat16"])
    )
    assert (result["bytes"], result["weights"]) == (plain["bytes"], "float32")
    assert asked["weights"] == "bfloat16"


def test_raw_prints_the_bytes_and_text_prints_them_decoded(model, folder, capfdbinary):
    expected = generate(model, PROMPT, max_bytes=60, seed=1)
    options = (folder, "--prompt", PROMPT, "--max-bytes", "60", "--seed", "1")
    assert printed(capfdbinary, *options, "--raw") == expected
    assert printed(capfdbinary, *options).decode() == expected.decode("utf-8", "replace")


def test_the_prompt_is_an_argument_a_file_or_standard_input(model, folder, capfdbinary, tmp_path, monkeypatch):
    prompt = b"\xff\xfe-x\x00"
    expected = generate(model, prompt, max_bytes=9, temperature=0.0)
    options = (folder, "--max-bytes", "9", "--temperature", "0", "--raw")
    (tmp_path / "prompt").write_bytes(prompt)
    assert printed(capfdbinary, *options, "--prompt-file", str(tmp_path / "prompt")) == expected
    for extra in ((), ("--prompt-file", "-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt)))
        assert printed(capfdbinary, *options, *extra) == expected
    escaped = b"-\xff".decode("utf-8", "surrogateescape")
    assert printed(capfdbinary, *options, "--prompt", escaped) == generate(
        model, b"-\xff", max_bytes=9, temperature=0.0
    )


def test_several_stops(model, folder, capfdbinary):
    free = generate(model, b"abc", max_bytes=80, seed=2)
    stops = [free[50:52], free[30:32]]
    expected = generate(model, b"abc", max_bytes=80, seed=2, stop=stops)
    options = [word for stop in stops for word in ("--stop", stop.decode("utf-8", "surrogateescape"))]
    out = printed(capfdbinary, folder, "--prompt", "abc", "--max-bytes", "80", "--seed", "2", "--raw", *options)
    assert out == expected != free


def test_a_terminal_gets_escapes_and_a_last_newline(model, folder, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(["generate", folder, "--prompt", "x", "--max-bytes", "300", "--seed", "3"]) == 0
    shown = terminal.raw_bytes.getvalue().decode()
    expected = generate(model, b"x", max_bytes=300, seed=3).decode("utf-8", "replace")
    assert any(c < " " and c not in "\n\t" for c in expected), "the test needs a model that writes control characters"
    assert all(c >= " " or c in "\n\t" for c in shown)
    assert "\\x" in shown
    assert shown.endswith("\n")


def test_ctrl_c_keeps_what_there_is_and_a_whole_state(model, folder, monkeypatch, tmp_path, capsys):
    terminal = Terminal(interrupt_after=12)
    monkeypatch.setattr(sys, "stdout", terminal)
    before = signal.getsignal(signal.SIGINT)
    state = str(tmp_path / "state")
    options = ["--max-bytes", "100000", "--temperature", "0", "--raw"]
    assert run(["generate", folder, "--prompt", "x", "--save-state", state, *options]) == 130
    given = terminal.raw_bytes.getvalue()
    assert len(given) == 12
    assert signal.getsignal(signal.SIGINT) is before
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(["generate", folder, "--load-state", state, "--max-bytes", "20", *options[2:]]) == 0
    assert given + terminal.raw_bytes.getvalue() == generate(model, b"x", max_bytes=32, temperature=0.0)


def test_a_context_read_once_serves_many_prompts(model, folder, capfdbinary, tmp_path):
    state, document = str(tmp_path / "state"), tmp_path / "document"
    document.write_bytes(b"a long document " * 40)
    assert (
        printed(capfdbinary, folder, "--prompt-file", str(document), "--max-bytes", "0", "--save-state", state) == b""
    )
    for prompt in ("one", "two", ""):
        out = printed(
            capfdbinary, folder, "--load-state", state, "--prompt", prompt, "--max-bytes", "20", "--seed", "4", "--raw"
        )
        assert out == generate(model, document.read_bytes() + prompt.encode(), max_bytes=20, seed=4)


def test_a_model_in_bfloat16_goes_on_from_its_state(capfdbinary, tmp_path):
    save_model(tiny_model().to(torch.bfloat16), tmp_path / "model")
    options = (str(tmp_path / "model"), "--temperature", "0", "--raw", "--max-bytes")
    whole = printed(capfdbinary, *options, "30", "--prompt", "x")
    begun = printed(capfdbinary, *options, "12", "--prompt", "x", "--save-state", str(tmp_path / "state"))
    assert begun + printed(capfdbinary, *options, "18", "--load-state", str(tmp_path / "state")) == whole
    follow = ("3", "--load-state", str(tmp_path / "state"), "--prompt", "long" * 20)
    assert len(printed(capfdbinary, *options, *follow)) == 3


def test_a_damaged_or_foreign_state_is_refused(folder, capsys, tmp_path):
    state = tmp_path / "state"
    assert run(["generate", folder, "--prompt", "x", "--max-bytes", "1", "--save-state", str(state)]) == 0
    other = str(tmp_path / "other")
    save_model(tiny_model(seed=1), other)
    assert run(["generate", other, "--load-state", str(state), "--prompt", "x"]) == 1
    assert "another model" in capsys.readouterr().err
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    assert run(["generate", folder, "--load-state", str(state), "--prompt", "x"]) == 1
    assert "damaged" in capsys.readouterr().err


def test_a_drafter_changes_the_time_and_not_the_bytes(folder, capfdbinary, tmp_path):
    save_model(tiny_model(seed=3), tmp_path / "small")
    options = (folder, "--prompt", "abababab", "--max-bytes", "40", "--seed", "5")
    plain = printed(capfdbinary, *options, "--raw")
    subwords = Subwords.learn([b"abab abc"], 270)
    save_model(SubwordLM(tiny_model(seed=4, vocab_size=len(subwords)), subwords), tmp_path / "subwords")
    for drafter in ("lookup", str(tmp_path / "small"), str(tmp_path / "subwords")):
        result = json.loads(printed(capfdbinary, *options, "--drafter", drafter, "--json").splitlines()[-1])
        assert base64.b64decode(result["bytes"]) == plain
        assert result["decoding"]["bytes"] == 40
        assert 0 <= result["decoding"]["acceptance"] <= 1


def test_constraints_hold(folder, capfdbinary, tmp_path):
    options = (folder, "--prompt", "x", "--max-bytes", "30", "--seed", "5")
    assert printed(capfdbinary, *options, "--raw", "--regex", "-?[0-9]{3}").lstrip(b"-").isdigit()
    printed(capfdbinary, *options, "--raw", "--utf8").decode()
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    (tmp_path / "schema.json").write_text(schema)
    for given in (schema, str(tmp_path / "schema.json")):
        result = json.loads(printed(capfdbinary, *options, "--json", "--json-schema", given).splitlines()[-1])
        assert json.loads(result["text"]) in ({"a": True}, {"a": False})
        assert result["end"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--temperature", "-1"], 2, "--temperature must be"),
        (["--temperature", "nan"], 2, "--temperature must be"),
        (["--top-p", "1.5"], 2, "--top-p must be"),
        (["--top-k", "0"], 2, "--top-k must be"),
        (["--repetition-penalty", "0"], 2, "--repetition-penalty must be"),
        (["--max-bytes", "-1"], 2, "--max-bytes"),
        (["--seed", "-1"], 2, "--seed"),
        (["--stop", ""], 2, "--stop must not be empty"),
        (["--raw", "--json"], 2, "one of them"),
        (["--prompt-file", "f"], 2, "one of them"),
        (["--device", "abacus"], 2, "abacus"),
        (["--regex", "("], 2, "regular expression"),
        (["--json-schema", "{"], 2, "not JSON"),
        (["--json-schema", "absent"], 2, "--json-schema 'absent': no JSON object, and no file"),
        (["--json-schema", ""], 2, "--json-schema '': no JSON object, and no file"),
        (["--json-schema", sys.executable], 2, "the file is no text in UTF-8"),
        (["--utf8", "--regex", "a"], 2, "one of them"),
        (["--regex", "abcdef", "--max-bytes", "3"], 2, "at least 6 bytes"),
        (["--top-beta", "3"], 2, "--drafter"),
        (["--drafter", "oracle"], 1, "oracle"),
        (["--load-state", "absent"], 1, "absent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_a_sentence(folder, capsys, arguments, code, words):
    assert run(["generate", folder, "--prompt", "x", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_missing_model_or_prompt_file_is_a_sentence(folder, capsys, tmp_path):
    assert run(["generate", str(tmp_path / "absent"), "--prompt", "x"]) == 1
    assert "absent" in capsys.readouterr().err
    assert run(["generate", folder, "--prompt-file", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly(folder):
    command = [sys.executable, "-m", "mambabyte", "generate", folder, "--prompt", "x", "--max-bytes", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(5)
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert b"Traceback" not in complaints
    assert b"mambabyte:" not in complaints
