#!/bin/sh
# Make .venv with everything that the demo and the tests need.
#
#   sh tools/setup.sh PYTHON [CONSTRAINTS]
#
# PYTHON is the interpreter to build on. If it already has torch 2.9 to 2.15, CPU or CUDA, .venv uses that torch as it is.
# Otherwise torch comes from the package registry where `nvidia-smi` finds a GPU, and as the CPU build where it does not:
# a plain `torch` would pull gigabytes of CUDA packages onto a machine that cannot use them.
# CONSTRAINTS, a file of exact versions, is handed to pip.
set -eu

python=$1
constraints=${2:-}
cpu_torch="torch==2.13.0+cpu"

# Debian's python3 has no ensurepip, so the environment is made without pip and filled from outside by the caller's pip.
"$python" -m venv --clear --without-pip .venv

# Let .venv see the packages around it only if they hold a torch that fits.
"$python" - <<'END'
import importlib.util
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

if importlib.util.find_spec("torch") is not None:
    number = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
    if (2, 9) <= number < (2, 16):
        paths = sysconfig.get_paths()
        target = Path(".venv/lib") / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "outer.pth"
        target.write_text("\n".join(dict.fromkeys([paths["purelib"], paths["platlib"]])) + "\n")
        print(f"setup: using torch {version('torch')} of {sys.prefix}")
END

if "$python" -m pip --version >/dev/null 2>&1; then
    install() { "$python" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check "$@"; }
else
    .venv/bin/python -m ensurepip >/dev/null
    install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
fi

if ! .venv/bin/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"; then
    if nvidia-smi -L >/dev/null 2>&1; then
        install "torch>=2.9,<2.16"
    else
        # the second line serves machines whose pip is not told of the CPU wheels
        install --no-compile "$cpu_torch" 2>/dev/null ||
            install --no-compile "$cpu_torch" --index-url https://download.pytorch.org/whl/cpu
    fi
fi

install ${constraints:+-c "$constraints"} -e ".[dev]"
