"""From written IR to a call: compile with llvmlite, keep the machine code in the user's cache, run on a few threads.

Nothing here happens at import. The cache (`$XDG_CACHE_HOME/mambabyte`, by default `~/.cache/mambabyte`) is only a
shortcut past LLVM: an entry that is missing, damaged or not ours is built again, and a folder that cannot be written is
left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import torch

from mambabyte.ops.target import Target
from mambabyte.ops.vector_ir import Function

DIGEST_BYTES = 32
# A second thread costs about 40 us to start; below this much work it is not worth its while.
SERIAL_NANOSECONDS = 300_000
# Cores this process may use, asked for once: the answer takes 10 us.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Kernel:
    """A compiled `Function`, called with its arguments by name.

    Pointers are tensors (contiguous where the kernel says so), addresses or None, which becomes the null pointer. The
    GIL is released while the kernel runs.
    """

    def __init__(self, source: Function):
        self.name, self.pointers, self.integers = source.name, tuple(source.pointers), source.integers
        self.scratch_bytes = source.scratch_bytes
        self._engine = _load(_object_code(source), source.target)
        kinds = [ctypes.c_void_p] * (2 + len(self.pointers)) + [ctypes.c_int64] * len(self.integers)
        self._call = ctypes.CFUNCTYPE(None, *kinds)(self.address(source.name))

    def __call__(self, *, threads: int, **arguments: torch.Tensor | int | None) -> None:
        """Run on the calling thread and `threads - 1` others, which share the tasks, until all tasks are done."""
        assert arguments.keys() == {*self.pointers, *self.integers}, (self.name, sorted(arguments))
        values = [_address(arguments[name]) for name in (*self.pointers, *self.integers)]
        counter = ctypes.c_int64(0)

        def work(kept: object = arguments) -> None:  # noqa: ARG001  # addresses alone would not keep tensors alive
            self._call(ctypes.addressof(counter), _scratch(self.scratch_bytes), *values)

        others = [_pool().submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()

    def alone(self, *values: int) -> None:
        """Run on the calling thread with addresses and integers in the kernel's order: the shortest way in."""
        assert self.scratch_bytes == 0, f"{self.name} needs scratch memory"
        self._call(None, None, *values)

    def address(self, name: str) -> int:
        """Where the function of this name in the kernel's module begins."""
        return self._engine.get_function_address(name)


def _address(argument: torch.Tensor | int | None) -> int | None:
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument


def threads_for(nanoseconds: float, tasks: int) -> int:
    """How many threads a call of this much single-thread work should take: torch's number, one where work is small."""
    if nanoseconds < SERIAL_NANOSECONDS:
        return 1
    return max(1, min(torch.get_num_threads(), tasks))


_executor: ThreadPoolExecutor | None = None
_executor_lock = threading.Lock()


def _pool() -> ThreadPoolExecutor:
    global _executor
    with _executor_lock:
        if _executor is None:
            _register_fork_once()
            _executor = ThreadPoolExecutor(max_workers=CORES, thread_name_prefix="mambabyte-kernel")
        return _executor


@functools.cache
def _register_fork_once() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_threads)


def _forget_threads() -> None:
    """A forked child has the executor's queue but none of its threads, and perhaps a lock held by one of them."""
    global _executor, _executor_lock
    _executor, _executor_lock = None, threading.Lock()


_local = threading.local()


def _scratch(size: int) -> int:
    """Address of this thread's scratch memory, at least `size` bytes, aligned to a page."""
    if getattr(_local, "size", -1) < size:
        _local.memory = ctypes.create_string_buffer(size + 4096)
        _local.address = -(-ctypes.addressof(_local.memory) // 4096) * 4096
        _local.size = size
    return _local.address


@functools.cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _machine(target: Target) -> llvm.TargetMachine:
    _initialise()
    return llvm.Target.from_default_triple().create_target_machine(cpu=target.cpu, features=target.features, opt=3)


def _load(code: bytes, target: Target) -> llvm.ExecutionEngine:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(target))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _object_code(source: Function) -> bytes:
    text = str(source.module)
    parts = (llvmlite.__version__, str(llvm.llvm_version_info), source.target.cpu, source.target.features, text)
    path = _cache_folder() / (hashlib.sha256("\0".join(parts).encode()).hexdigest() + ".o")
    code = _read(path)
    if code is None:
        code = compile_object(text, source.target)
        _write(path, code)
    return code


def compile_object(text: str, target: Target, machine: llvm.TargetMachine | None = None) -> bytes:
    """Machine code, as an object file, of a module's IR text."""
    machine = machine or _machine(target)
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # the kernels are vectors already; the vectorisers would only spend time looking
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mambabyte"


def _read(path: Path) -> bytes | None:
    """A cache entry that is ours and whole, else None: a file that another user could write must not become code."""
    try:
        entry = path.read_bytes()
        about = path.stat()
    except OSError:
        return None
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        return None
    digest, code = entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Put an entry in place at once, so that no reader ever sees half of it; give up quietly on any OSError."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
