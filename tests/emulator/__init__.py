"""CUDA C++ kernels of this package run on a CPU, thread by thread, so that they are tested where there is no GPU.

A kernel is compiled by g++ against `cuda_emulator.h`. Each CUDA thread is a fiber of one operating system thread;
waiting for ever, faults and misuse of barriers raise `EmulationError` with the threads and lines.
"""

import ctypes
import functools
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from torch import Tensor

from mambabyte.ops import nvrtc

from .rewriting import rewrite

HERE = Path(__file__).parent
OWN = {path.name for pattern in ("*.h", "*.cpp") for path in HERE.glob(pattern)}
# Wrong indices of arrays and wrong alignment become traps, which the scheduler reports.
FLAGS = (
    *("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-omit-frame-pointer"),
    *("-g1", "-w", "-fPIC", "-fvisibility=hidden", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-fcf-protection=none"),
)
CHECKS = ("-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error")


class EmulationError(RuntimeError):
    """What a launch did wrong, with the block, the threads and the lines."""


def why_not() -> str | None:
    """A sentence why kernels cannot be emulated here; None when they can."""
    if (machine := f"{platform.system()} {platform.machine()}") != "Linux x86_64":
        return f"the emulator's fibers are written for Linux x86_64, this is {machine}"
    if shutil.which("g++") is None:
        return "the emulator compiles kernels by g++, which is not installed"
    return None


class _Memory(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("arguments", ctypes.c_uint),
        ("seed", ctypes.c_ulonglong),
        ("seconds", ctypes.c_double),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("sizes", ctypes.POINTER(ctypes.c_size_t)),
        ("memory", ctypes.POINTER(_Memory)),
        ("memories", ctypes.c_size_t),
        ("ordered", ctypes.c_uint),
    )


class Emulated:
    """One `extern "C" __global__` function of the joined sources (as for `nvrtc.get`), compiled when first launched."""

    def __init__(self, sources: tuple[str, ...], name: str, **defines: int):
        self.sources, self.name, self.defines = sources, name, tuple(sorted(defines.items()))

    def __call__(
        self,
        grid: tuple[int, ...],
        threads: int,
        *arguments: Tensor | int | float | bytes | ctypes.Structure | None,
        shared: int = 0,
        seed: int = 0,
        seconds: float = 60.0,
        races: bool = False,
        memory: Iterable[Tensor] | None = None,
    ) -> None:
        """Run the kernel to its end; arguments as for `nvrtc.Kernel`, structs by value as bytes or ctypes structures.

        Seed 0 runs threads in order and completes asynchronous copies as late as possible; others shuffle both.
        With `races`, some ten times slower, every access to memory is checked: against those of other threads that no
        barrier orders, and against the extent of the arguments' tensors or, where structs hold pointers, of `memory`.
        Raises EmulationError for what the kernel does wrong, or after `seconds` of processor time.
        """
        library = _library(self.sources, self.defines, races)
        if not hasattr(library, f"emulated_{self.name}"):
            raise ValueError(f'{", ".join(self.sources)} have no extern "C" __global__ void {self.name}')
        entry = getattr(library, f"emulated_{self.name}")
        entry.restype = ctypes.c_char_p
        buffers = [_buffer(a) for a in arguments]
        values = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(b) for b in buffers))
        sizes = (ctypes.c_size_t * len(buffers))(*(ctypes.sizeof(b) for b in buffers))
        grid = (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid)))
        known = _extents(arguments, memory)
        extents = None if known is None else (_Memory * len(known))(*known)
        launch = _Launch(
            *(
                grid,
                threads,
                shared,
                len(buffers),
                seed,
                seconds,
                values,
                sizes,
                extents,
                len(known or ()),
                races,
            )
        )
        said = entry(ctypes.byref(launch))
        if said is not None:
            raise EmulationError(f"{self.name}: {_with_lines(said.decode())}")


def get(sources: tuple[str, ...], name: str, **defines: int) -> Emulated:
    """In the place of `nvrtc.get`."""
    return Emulated(sources, name, **defines)


def _buffer(argument: Tensor | int | float | bytes | ctypes.Structure | None) -> Any:
    match argument:
        case Tensor():
            if argument.device.type != "cpu":
                raise ValueError(f"the emulator takes CPU tensors, not one on {argument.device}")
            return ctypes.c_void_p(argument.data_ptr())
        case None:
            return ctypes.c_void_p(0)
        case bytes():
            return ctypes.create_string_buffer(argument, len(argument))
        case ctypes.Structure():
            return argument
        case float():
            return ctypes.c_double(argument)
    return ctypes.c_longlong(argument)


def _extents(arguments: tuple[Any, ...], memory: Iterable[Tensor] | None) -> list[tuple[int, int]] | None:
    """Where the storages of the tensors lie; None when pointers in structs may lead anywhere."""
    if memory is None and any(isinstance(a, bytes | ctypes.Structure) for a in arguments):
        return None
    tensors = [a for a in (*arguments, *(memory or ())) if isinstance(a, Tensor)]
    return [(s.data_ptr(), s.nbytes()) for s in (t.untyped_storage() for t in tensors)]


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mambabyte-emulator-")


def _folder() -> Path:
    return Path(_temporary().name)


def _compile(*arguments: str, text: str | None = None) -> str:
    """What g++ says on its standard output, given `text` on its standard input."""
    command = ["g++", *FLAGS, "-I", str(HERE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, input=text, cwd=nvrtc.OPS)
    if done.returncode:
        raise ValueError(f"g++ could not compile a kernel:\n{done.stderr[:6000]}")
    return done.stdout


@functools.cache
def _runtime() -> str:
    """The emulator's own library, which those of the kernels are linked with."""
    sources = sorted(HERE.glob("*.cpp"))
    objects = [str(_folder() / f"{source.stem}.o") for source in sources]
    with ThreadPool(2) as pool:
        pool.starmap(_compile, [("-c", str(source), "-o", made) for source, made in zip(sources, objects, strict=True)])
    library = str(_folder() / "libemulator.so")
    _compile("-shared", *objects, "-o", library)
    return library


@functools.cache
def _library(sources: tuple[str, ...], defines: tuple[tuple[str, int], ...], races: bool) -> ctypes.CDLL:
    macros = [f"-D{name}={value}" for name, value in defines]
    text = rewrite(_compile("-E", "-x", "c++", *macros, "-", text=nvrtc.read_source(*sources)))
    flags = (*CHECKS, "-fsanitize=thread") if races else CHECKS
    place = _folder() / f"{hashlib.sha256((text + str(flags)).encode()).hexdigest()[:16]}.so"
    place.with_suffix(".cpp").write_text(text)
    _compile(*flags, "-c", str(place.with_suffix(".cpp")), "-o", str(place.with_suffix(".o")))
    _compile("-shared", str(place.with_suffix(".o")), _runtime(), "-o", str(place))
    return ctypes.CDLL(str(place))


def _with_lines(said: str) -> str:
    """The report with the lines of the kernels for each `@address,address@`, innermost first."""

    def lines(found: re.Match[str]) -> str:
        own = [line for address in found[1].split(",") for line in _lines(int(address, 16))]
        return f"({', in '.join(own)})" if own else "(outside the kernel)"

    return re.sub(r"@(0x[0-9a-f,x]+)@", lines, said)


def _lines(address: int) -> list[str]:
    for mapping in Path("/proc/self/maps").read_text().splitlines():
        first, _, rest = mapping.partition("-")
        library = _folder() / Path(mapping).name
        if int(first, 16) <= address < int(rest.split()[0], 16) and mapping.endswith(str(library)):
            offset = address - int(first, 16) + int(rest.split()[2], 16)
            break
    else:
        return []
    if shutil.which("addr2line") is None:
        return [f"offset {offset:#x}"]
    command = ["addr2line", "-i", "-e", str(library), hex(offset - 1)]
    frames = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    lines = [f.split(" (")[0].replace(str(nvrtc.OPS) + "/", "") for f in frames]
    return [line for line in lines if Path(line.split(":")[0]).name not in OWN and str(_folder()) not in line]
