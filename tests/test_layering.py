"""The house: imports go down, never up or sideways, and opening the door touches nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import mambabyte

PACKAGE = Path(mambabyte.__file__).parent
FLOORS = {
    "config": 0,
    "ops": 1,
    "data": 1,
    "layers": 2,
    "models": 3,
    "checkpoints": 4,
    "generation": 4,
    "evaluation": 4,
    "training": 5,
    "benchmarking": 6,
    "hf": 6,
    "cli": 7,
}
DOOR = {"__init__", "__main__"}  # the package's own front door may name anything


def room(module: str) -> str:
    """The part of the house that `mambabyte.<room>...` lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """Every mambabyte module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "mambabyte"}


def test_every_file_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert rooms - DOOR <= set(FLOORS)


def test_imports_go_down() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here in DOOR:
            continue
        for module in imports(path):
            there = room(module)
            if there == "__version__" or there == here:
                continue
            if FLOORS.get(there, 99) >= FLOORS[here]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong, wrong


def test_the_references_need_torch_alone() -> None:
    for path in PACKAGE.glob("ops/*/reference.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert {str(m).split(".")[0] for m in modules} <= {"torch"}, path


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "torch numpy llvmlite grain transformers safetensors tokenizers rich"
    code = f"import sys, mambabyte, mambabyte.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
