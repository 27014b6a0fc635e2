"""The README's commands and Python run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder that looks like the repository to the commands, where they may write."""
    for name in ("src", "docs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_commands_run(copy: Path) -> None:
    (block,) = blocks("sh")
    lines = block.splitlines()
    assert len(lines) == 5
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # what activating the environment does
    for line in lines:
        assert shlex.split(line)[0] == "mambabyte"
        environment = os.environ | {"PATH": path}
        done = subprocess.run(line, shell=True, cwd=copy, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), line


def test_the_python_runs(copy: Path) -> None:
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], cwd=copy, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (copy / "folder").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([\w-]+)", README + (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE))
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_files_it_names_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links), links
    named = set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    assert named == {path.parent.name for path in (ROOT / "src/mambabyte").glob("*/__init__.py")}


def test_help_is_quick_to_import() -> None:
    """The command's help must not import torch: `import time` of everything it loads is printed by -X importtime."""
    environment = os.environ | {"COLUMNS": "100"}
    command = [sys.executable, "-X", "importtime", "-m", "mambabyte", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not loaded & {"torch", "numpy", "llvmlite", "grain"}
    assert "--preset" in done.stdout
