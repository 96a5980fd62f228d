"""NVIDIA's run-time compiler, called through ctypes: CUDA text becomes a binary of a named device, without one here.

It comes as a Python package (`pip install 'irx[cuda]'`). The headers of half floats are those that triton brings; the
two that CUDA text may include from NVIDIA's standard library are short, and written here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irx.errors import KernelFailed, MissingExtra

PACKAGE = "nvidia-cuda-nvrtc-cu12"
LIBRARIES = ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cu13/lib/libnvrtc.so.13")
INCLUDES = ("triton/backends/nvidia/include", "nvidia/cuda_runtime/include", "nvidia/cu13/include")
NEEDED = "cuda_fp16.h"

_INTEGERS = """namespace cuda { namespace std {
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
} }
"""
_TRAITS = """namespace cuda { namespace std {
template <class A, class B> extern const bool is_same_v;
template <class A, class B> struct is_same;
template <class A> struct is_integral;
template <class A> struct is_signed;
template <class A> struct is_unsigned;
template <class A> struct is_floating_point;
template <bool, class A = void> struct enable_if;
template <bool, class A, class B> struct conditional;
} }
"""  # named by TVM's first lines, and used by no kernel: what is only declared is an error where it is used
HEADERS = {b"cuda/std/cstdint": _INTEGERS.encode(), b"cuda/std/type_traits": _TRAITS.encode()}


def missing() -> str | None:
    """Why CUDA text cannot be compiled here; None where it can."""
    if next(_files(LIBRARIES), None) is None:
        return f"{PACKAGE} is not installed (pip install 'irx[cuda]')"
    if _include() is None:
        return f"{NEEDED} is not installed, which triton brings (pip install 'irx[cuda]')"
    return None


def version() -> str:
    """The version of the compiler. Raises MissingExtra."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_cuda(text: str, architecture: str, *, fusion: bool) -> bytes:
    """The binary of CUDA text for `sm_80` and the like; `fusion` lets a * b + c become one instruction.

    Raises MissingExtra, and KernelFailed with what the compiler says.
    """
    library, program = _library(), ctypes.c_void_p()
    count = len(HEADERS)
    names = (ctypes.c_char_p * count)(*HEADERS)
    headers = (ctypes.c_char_p * count)(*HEADERS.values())
    _check(
        library, library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", count, headers, names)
    )
    options = [f"--gpu-architecture={architecture}", f"--fmad={str(fusion).lower()}", f"--include-path={_include()}"]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        if library.nvrtcCompileProgram(program, len(options), given):
            raise KernelFailed(_read(library, program, "ProgramLog").decode(errors="replace").strip("\0 \n"))
        return _read(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: Any, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, data))
    return data.raw


def _check(library: Any, code: int) -> None:
    if code:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise KernelFailed(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}")


@cache
def _library() -> Any:
    found = next(_files(LIBRARIES), None)
    if found is None:
        raise MissingExtra(PACKAGE, "cuda", needed_for="compiling the CUDA text that TVM writes")
    return ctypes.CDLL(str(found))


def _include() -> Path | None:
    return next((path for path in _files(INCLUDES) if (path / NEEDED).is_file()), None)


def _files(places: tuple[str, ...]) -> Iterator[Path]:
    """Those of these files of packages that are installed."""
    for place in places:
        package, _, rest = place.partition("/")
        spec = find_spec(package)
        roots = spec.submodule_search_locations if spec is not None else None
        yield from (path for root in roots or () if (path := Path(root) / rest).exists())
