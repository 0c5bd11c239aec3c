"""torch.compile for the methods of a learner. What is compiled is kept, and loaded in later runs."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch

from environments import first_line
from networks import NetworkSettings
from training.settings import RunSettings

CHANGED = (
    "it uses a number or another Python object that has changed since the first call, which compiled code does not see;"
    " keep it in a tensor and change that in place, or pass it as an argument"
)
TORCH = str(Path(torch.__file__).parent)
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
CODE, DIGESTS = "function.bin", "digests.json"
USER_CACHE = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", tempfile.gettempdir())) / ".cache"
CACHE = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or USER_CACHE) / "a2c"  # PyTorch sets the variable later
KEPT = 100
"""Compiled methods that are kept, some 1 MB each; the least recently used ones are removed."""


class Compiled:
    """A method under torch.compile: compiled at its first call, for arguments of the shapes that it has there.

    The compiled code is kept in `CACHE`. A later run loads it if it comes from the same sources, settings,
    versions and kind of CPU, is not damaged, and its guards hold, which compare all that it depends on.

    Guards take as long as the computation, so they are only checked in calls 1, 2, 4, 8 and so on: they fail if a
    number has changed. Tensors may be modified in place at any time. The shapes of the arguments are checked in every
    call. Where a check or compiling fails, the method runs uncompiled.

    Args:
        method: of a learner; takes tensors and tuples of tensors; returns tensors, in nested tuples and dicts.
        settings: what it depends on, beside its sources and arguments.
        compiling: called before it is compiled.
        failed: called with the error if it cannot be compiled, or a number has changed.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "cpp_wrapper": True,  # all of it is C++, not only its loops
        "cpp.vec_isa_ok": True,  # does not try for seconds whether the compiler knows the instructions of the CPU
        "aot_inductor.allow_stack_allocation": True,  # intermediate results need no allocations
    }

    def __init__(
        self,
        method: Any,
        settings: object,
        compiling: Callable[[], object],
        failed: Callable[[Exception], object],
    ) -> None:
        self.learner, self.function = method.__self__, method.__func__
        self.settings, self.compiling, self.failed = settings, compiling, failed
        self.calls = 0
        self.shapes: Any = None
        self.fast: Any = None
        self.checked: Any = None
        self.first_results: Any = None
        self.reuses_memory = True

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: PyTorch pickles the learner with the guards of its methods, but not those that are compiled."""
        return {}

    def __call__(self, *args: Any) -> Any:
        shapes = shapes_of(args)
        self.calls += 1
        if self.calls == 1:
            return self._first(args, shapes)
        if shapes != self.shapes:
            return self.function(self.learner, *args)
        if self.calls & (self.calls - 1):
            results = self.fast(self.learner, *args)
            return clones(results) if self.reuses_memory else results
        try:
            results = self.checked(self.learner, *args)
            if self.calls == 2:  # compiled code with buffers on the stack has all its results in the same memory
                self.reuses_memory = addresses(results) == addresses(self.first_results)
                self.first_results = None
            return clones(results)
        except RuntimeError as error:
            if "GuardManager" not in str(error):
                raise
            self.failed(ValueError(CHANGED))
            self.shapes = None
            return self.function(self.learner, *args)

    def _first(self, args: tuple[Any, ...], shapes: Any) -> Any:
        """Load or compile the method; returns its results."""
        directory = CACHE / self._key(shapes)
        for make in (self._load, self._compile):
            try:
                self.checked = make(directory, args)
                results = self.checked(self.learner, *args)
            except Exception as error:  # a compiler can raise anything, and so can what another one has left
                if make == self._compile:
                    self.failed(error)
            else:
                self.fast, self.shapes = copy.copy(self.checked), shapes
                self.fast.disable_guard_check()
                self.first_results = results
                return clones(results)
        return self.function(self.learner, *args)

    def _key(self, shapes: Any) -> str:
        """The name of the directory of the compiled code: a digest of what it depends on."""
        machine = [torch.__version__, sys.version, cpu(), torch.get_num_threads()]
        parts = [self.function.__module__, self.function.__qualname__, self.settings, shapes, self.OPTIONS]
        return digest(repr([*parts, *machine, *sources()]).encode())[:32]

    def _load(self, directory: Path, args: tuple[Any, ...]) -> Any:
        for name, value in json.loads((directory / DIGESTS).read_text()).items():
            if digest((directory / name).read_bytes()) != value:
                raise ValueError(f"{directory / name} is damaged")
        with environ(TORCHINDUCTOR_CACHE_DIR=str(directory), TORCHINDUCTOR_VEC_ISA_OK="1"):
            code = BytesIO((directory / CODE).read_bytes())
            compiled = torch.compiler.load_compiled_function(code, f_globals=self.function.__globals__)
        os.utime(directory)
        return compiled

    def _compile(self, directory: Path, args: tuple[Any, ...]) -> Any:
        self.compiling()
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            torch._dynamo.config.trace_autograd_ops = True  # lets torch.autograd.grad be part of the graph
        with contextlib.suppress(OSError):
            CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = CACHE if os.access(CACHE, os.W_OK) else None  # None: that of temporary files, where nothing is kept
        with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as temporary:
            with environ(TORCHINDUCTOR_CACHE_DIR=temporary):
                function: Any = torch.compile(self.function, fullgraph=True, dynamic=False, options=self.OPTIONS)
                compiled = function.aot_compile(((self.learner, *args), {}))
            with contextlib.suppress(Exception):  # such as a full disk: then it is compiled again the next time
                keep(compiled, Path(temporary), directory)
        return compiled


def keep(compiled: Any, temporary: Path, directory: Path) -> None:
    """Move compiled code, and the files that PyTorch has written with it, from a temporary directory to its own."""
    compiled.save_compiled_function(str(temporary / CODE))
    files = [path for path in temporary.rglob("*") if path.is_file()]
    digests = {str(path.relative_to(temporary)): digest(path.read_bytes()) for path in files}
    (temporary / DIGESTS).write_text(json.dumps(digests))
    shutil.rmtree(directory, ignore_errors=True)  # damaged, or no longer right
    temporary.rename(directory)
    for old in sorted(directory.parent.iterdir(), key=lambda path: -path.stat().st_mtime)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sources() -> list[str]:
    """Digests of the sources of all modules in use that do not belong to a library: code may come from any of them."""
    others = (*LIBRARIES, str(CACHE))
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    own = [Path(file) for file in sorted(files) if file.endswith(".py") and not file.startswith(others)]
    return [digest(path.read_bytes()) for path in own if path.exists()]


def cpu() -> list[str]:
    """What the system says about the CPU: its name and instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return [torch.backends.cpu.get_cpu_capability(), *sorted(found)]


@contextlib.contextmanager
def environ(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def shapes_of(args: tuple[Any, ...]) -> list[Any]:
    """Shape, type and strides of the tensors in nested tuples."""
    return [shapes_of(arg) if isinstance(arg, tuple) else (arg.shape, arg.dtype, arg.stride()) for arg in args]


def clones(results: Any) -> Any:
    """Copies of the tensors in nested tuples and dicts."""
    if type(results) is torch.Tensor:
        return results.clone()
    if isinstance(results, dict):
        return {name: clones(result) for name, result in results.items()}
    return tuple([item.clone() if type(item) is torch.Tensor else clones(item) for item in results])


def addresses(results: Any) -> list[int]:
    """Where the tensors in nested tuples and dicts lie in memory."""
    if isinstance(results, torch.Tensor):
        return [results.data_ptr()]
    return [
        address
        for result in (results.values() if isinstance(results, dict) else results)
        for address in addresses(result)
    ]


def compile_methods(learner: object, config: RunSettings, *names: str) -> None:
    """Put methods of a learner under torch.compile, see `Compiled`; print why, once, if one cannot be compiled.

    Unless `config.quiet`, say that compiling takes a while.
    """
    of_the_run = {field.name for field in dataclasses.fields(RunSettings)} - {"device"}
    of_the_run -= {field.name for field in dataclasses.fields(NetworkSettings)}
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in of_the_run}
    reported: list[str] = []

    def compiling() -> None:
        if not (config.quiet or reported or int(os.environ.get("RANK", "0"))):
            print("compiling, once for these settings: some 10 to 20 s", flush=True)
            reported.append("")

    def failed(name: str, error: Exception) -> None:
        where, why = untraceable(error), first_line(error)
        if where:
            why = f"torch.compile cannot trace {where}"
        if why not in reported:
            sys.stderr.write(f"{name} is not compiled, and slower: {why}\n")
        reported.append(why)

    for name in names:
        method = getattr(learner, name)
        setattr(learner, name, Compiled(method, settings, compiling, functools.partial(failed, name)))


def untraceable(error: Exception) -> str:
    """The innermost line outside of PyTorch at which torch.compile gave up; empty if it is not known."""
    frames = [frame for frame in getattr(error, "real_stack", None) or [] if not frame.filename.startswith(TORCH)]
    return f"`{frames[-1].line}` ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
