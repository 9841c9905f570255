"""C that is compiled on the machine it runs on, where a compiler is found."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

# OpenMP is left to be resolved when the library is loaded, by the one that PyTorch computes with:
# a second one would have threads of its own, which compete with PyTorch's.
COMPILE = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math",
           "-fopenmp", "-fPIC", "-c")  # fmt: skip
LINK = ("-shared",)
LIBRARIES = ("-lmvec", "-lm")  # glibc's functions of whole vectors
SECONDS = 120  # after which a compiler is taken to hang


@functools.cache
def compiled(source: Path, *macros: str) -> ctypes.CDLL | None:
    """A C file as a library, compiled once for each kind of processor and kept in the user's cache.

    Args:
        source: The file.
        *macros: Names to define.

    Returns:
        The library, None where ``BNMLP_COMPILER`` is ``none``, no compiler is found, or what it
        makes does not load: callers have to do without.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        folder = _folder()
        library = folder / f"{source.stem}-{_fingerprint(source, compiler, macros)}.so"
        if not library.exists():
            _compile(source, compiler, macros, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> str | None:
    """Path of the C compiler, from ``BNMLP_COMPILER`` if that is set."""
    wanted = os.environ.get("BNMLP_COMPILER")
    if wanted == "none":
        return None
    names = [wanted] if wanted else ["gcc", "cc"]
    return next((path for name in names if (path := shutil.which(name))), None)


def _folder() -> Path:
    """A folder that only this user writes to."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "bnmlp" / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    except (OSError, RuntimeError):  # no home, or one that takes no files
        pass
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends; a loaded library stays usable without its file."""
    return tempfile.TemporaryDirectory(prefix="bnmlp-")


def _fingerprint(source: Path, compiler: str, macros: tuple[str, ...]) -> str:
    """Changes with everything that the library depends on, the processor included."""
    made = Path(compiler).resolve().stat()
    parts = (source.read_text(), compiler, made.st_size, made.st_mtime_ns, *macros, *COMPILE)
    text = "\n".join(map(str, (*parts, _processor())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _processor() -> str:
    """What the first processor can do, in the words of Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    first = lines[: lines.index("")] if "" in lines else lines
    return "\n".join(line for line in first if line.startswith(("flags", "Features", "model name")))


def _compile(source: Path, compiler: str, macros: tuple[str, ...], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, linked = Path(folder, "object.o"), Path(folder, "library.so")
        defined = [f"-D{macro}" for macro in macros]
        _run(compiler, *COMPILE, *defined, str(source), "-o", str(compiled))
        _run(compiler, *LINK, str(compiled), "-o", str(linked), *LIBRARIES)
        os.replace(linked, library)  # whole, whichever of several processes is the last


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
