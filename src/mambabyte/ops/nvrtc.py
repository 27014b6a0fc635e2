"""CUDA C++ compiled at run time by NVRTC and launched on torch's stream, through NVIDIA's `cuda.core`.

CUDA builds of torch bring NVRTC, so a GPU user needs neither nvcc nor a C compiler. Nothing here happens at import.
"""

import ctypes
import functools
import io
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, overload

import torch
from torch import Tensor

OPS = Path(__file__).parent
IO_CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
WARPGROUPS = "sm_90a"  # the one architecture whose warps can multiply by fours (wgmma)
# A block gets more than this much shared memory only after the driver is asked for it.
STATIC_SHARED_LIMIT = 48 * 1024
# Kernels reach the rows of a block, at most 256, by 32-bit offsets from the first.
MAX_ROW_STRIDE = 1 << 23


def why_not(tensor: Tensor) -> str | None:
    """A sentence why kernels of this package cannot run on this tensor; None when they can."""
    if tensor.device.type != "cuda":
        return f"the tensors are on {tensor.device.type}"
    if tensor.dtype not in IO_CODES:
        return f"its kernels take bfloat16, float16 and float32, not {tensor.dtype}"
    major, minor = torch.cuda.get_device_capability(tensor.device)
    if major < 8:
        return f"its kernels need compute capability 8.0, this GPU has {major}.{minor}"
    return _why_no_compiler()


@functools.cache
def _why_no_compiler() -> str | None:
    try:
        _core()
    except ModuleNotFoundError as missing:
        return f"the package cuda-core is not installed (no module {missing.name}): pip install cuda-core"
    except ImportError as error:
        return f"cuda.core cannot be imported: {error}"
    return None


def _core() -> ModuleType:
    import cuda.core as core

    if not hasattr(core, "Program"):  # before 0.5 everything lay one level down
        import cuda.core.experimental as core
    return core


def read_source(*names: str) -> str:
    """The CUDA sources of this package, joined in order with their lines kept; names are relative to `ops/`."""
    return "\n".join(f'#line 1 "{name}"\n{(OPS / name).read_text()}' for name in names)


def compile_cubin(source: str, defines: Mapping[str, int], arch: str) -> tuple[Any, str]:
    """Machine code of `source` for `arch` ("sm_90") and the assembler's report of registers and spills.

    Needs no GPU. Raises RuntimeError with the compiler's log when the source does not compile.
    """
    core = _core()
    options = core.ProgramOptions(
        arch=arch, std="c++17", define_macro=[(k, str(v)) for k, v in defines.items()], ptxas_options="-v"
    )
    log = io.StringIO()
    try:
        code = core.Program(source, "c++", options).compile("cubin", logs=log)
    except Exception as error:  # cuda.core raises its own NVRTCError; what it says is all there is to say
        settings = ", ".join(f"{k}={v}" for k, v in defines.items())
        said = f"{error}\n{log.getvalue()}"
        raise RuntimeError(f"NVRTC could not compile a kernel for {arch} with {settings}: {said}") from error
    return code, log.getvalue()


def whole_quads(*tensors: Tensor | None) -> bool:
    """Whether four neighbours can be read at once anywhere in the tensors that are not None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.shape[-1] % 4 or tensor.data_ptr() % (4 * tensor.element_size()):
            return False
        for stride in tensor.stride()[:-1]:
            if stride % 4:
                return False
    return True


@overload
def floats(tensor: Tensor) -> Tensor: ...
@overload
def floats(tensor: None) -> None: ...
def floats(tensor: Tensor | None) -> Tensor | None:
    """The tensor in float32, contiguous and on 16 bytes, so that four elements are one read; None for None."""
    return None if tensor is None else quads(tensor.to(torch.float32))


def quads(tensor: Tensor) -> Tensor:
    """The tensor, copied unless it is contiguous and on 16 bytes, so that four elements are one read."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def neighbouring(tensor: Tensor) -> Tensor:
    """The tensor, copied unless its last dimension lies together and rows are close enough for 32-bit offsets."""
    *_, row, element = (0, *tensor.stride())
    return tensor if element == 1 and row < MAX_ROW_STRIDE else tensor.contiguous()


class Kernel:
    """One `extern "C" __global__` function, compiled for the current GPU at its first launch."""

    def __init__(self, sources: tuple[str, ...], name: str, defines: tuple[tuple[str, int], ...]):
        self.sources, self.name, self.defines = sources, name, defines
        self._loaded: dict[tuple[int, int], Any] = {}  # by (device, shared memory)
        self._handles: dict[tuple[int, int], int] = {}  # the same, as the driver names them

    def __call__(
        self,
        grid: tuple[int, ...],
        threads: int,
        *arguments: Tensor | int | float | None,
        shared: int = 0,
    ) -> None:
        """Launch on the current device and stream.

        Tensors become pointers and None the null pointer; integers arrive as `long long`, floats as `double`.
        """
        device = _current_device()
        kernel = self._loaded.get((device, shared))
        if kernel is None:
            kernel = self._loaded[device, shared] = self._load(device, shared)
        values = [a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in arguments]
        stream = _stream(torch.cuda.current_stream(device).cuda_stream)
        _launch()(stream, _config(grid, threads, shared), kernel, *values)

    def together(self, blocks: int, threads: int, *arguments: ctypes.Structure | int, shared: int = 0) -> None:
        """Launch on the current device and stream with all blocks at once, so that they may wait for each other.

        Structures are passed by value, integers as `long long`. Raises RuntimeError if the GPU cannot hold the blocks.
        """
        from cuda.bindings import driver

        device = _current_device()
        handle = self._handles.get((device, shared))
        if handle is None:
            handle = self._handles[device, shared] = int(_handle(self._load(device, shared)))
        values = [ctypes.c_longlong(a) if isinstance(a, int) else a for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = torch.cuda.current_stream(device).cuda_stream
        (status,) = driver.cuLaunchCooperativeKernel(
            handle, blocks, 1, 1, threads, 1, 1, shared, stream, ctypes.addressof(pointers)
        )
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the GPU could not run {blocks} blocks of {self.name} together ({status.name})")

    def _load(self, device: int, shared: int) -> Any:
        kernel = _module(self.sources, self.defines, architecture(device)).get_kernel(self.name)
        if shared > STATIC_SHARED_LIMIT:
            _allow_shared(kernel, device, shared)
        return kernel


_bound = threading.local()


def _current_device() -> int:
    """torch's current device, whose context this thread has.

    The thread in which autograd runs a backward has none until something of torch's own has needed it there.
    """
    device = torch.cuda.current_device()
    if getattr(_bound, "device", None) != device:
        _core().Device(device).set_current()
        _bound.device = device
    return device


@functools.cache
def get(sources: tuple[str, ...], name: str, **defines: int) -> Kernel:
    """The kernel `name` of the joined sources under these macros; one object per combination."""
    return Kernel(sources, name, tuple(sorted(defines.items())))


def architecture(device: torch.device | int) -> str:
    """What NVRTC calls a GPU ("sm_100"), with all that it can do ("sm_90a")."""
    major, minor = torch.cuda.get_device_capability(device)
    return WARPGROUPS if (major, minor) == (9, 0) else f"sm_{major}{minor}"


@functools.cache
def _module(sources: tuple[str, ...], defines: tuple[tuple[str, int], ...], arch: str) -> Any:
    return compile_cubin(read_source(*sources), dict(defines), arch)[0]


def _allow_shared(kernel: Any, device: int, shared: int) -> None:
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared, _handle(kernel), device)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"this GPU cannot give a block {shared} bytes of shared memory ({status.name})")


@functools.cache
def hardware(device: torch.device) -> tuple[int, int]:
    """Multiprocessors of a GPU, and the most bytes of shared memory that a block may have."""
    from cuda.bindings import driver

    attributes = driver.CUdevice_attribute
    wanted = (
        attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        attributes.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
    )
    torch.cuda.current_stream(device)  # sets the driver up
    found = [driver.cuDeviceGetAttribute(attribute, device.index or 0) for attribute in wanted]
    assert all(status == driver.CUresult.CUDA_SUCCESS for status, _ in found), f"{device} tells nothing: {found}"
    return found[0][1], found[1][1]


def _handle(kernel: Any) -> Any:
    return kernel.handle if hasattr(kernel, "handle") else kernel._handle


@functools.cache
def _launch() -> Any:
    return _core().launch


@functools.lru_cache(maxsize=1024)
def _config(grid: tuple[int, ...], threads: int, shared: int) -> Any:
    return _core().LaunchConfig(grid=grid, block=threads, shmem_size=shared)


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    return _core().Stream.from_handle(handle)
