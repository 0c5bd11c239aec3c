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
import time
import types
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch

from environments import first_line
from networks import NetworkSettings
from training.generators import own_generators
from training.settings import RunSettings

CHANGED = (
    "it uses a number or another Python object that has changed since the first call, which compiled code does not see"
    " at once;"
    " keep it in a tensor and change that in place, or pass it as an argument"
)
TORCH = str(Path(torch.__file__).parent)
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
IDENTITY = {
    "DICT_VERSION",
    "NN_MODULE",
    "ID_MATCH",
    "FUNCTION_MATCH",
    "CLASS_MATCH",
    "MODULE_MATCH",
    "CLOSURE_MATCH",
    "WEAKREF_ALIVE",
}
"""Types of guards that compare the identity of an object, which differs from run to run."""
STARTED = time.time()
CODE, DIGESTS = "function.bin", "digests.json"
USER_CACHE = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", tempfile.gettempdir())) / ".cache"
CACHE = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or USER_CACHE) / "a2c"  # PyTorch sets the variable later
KEPT = 100
"""Compiled methods that are kept, 1 to 2 MB each; the least recently used ones are removed."""


class Compiled:
    """A method under torch.compile: compiled at its first call, for arguments of the shapes that it has there.

    The compiled code is kept in `CACHE`. A later run loads it if it comes from the same sources, settings, versions and
    kind of CPU, is not damaged, and its guards hold: they compare the numbers of the learner, and the global variables
    of its module, that it depends on. Of classes and other modules only the sources are compared: keep numbers that
    differ between runs in the settings.

    Guards take as long as the computation, so they are only checked in calls 1, 2, 4, 8 and so on, and in every 100th:
    they fail if a number has changed, or a tensor has another shape. Tensors may be modified in place at any time. The
    arguments are checked in every call. Where a check or compiling fails, the method runs uncompiled.

    What the method returns is the caller's. A tensor that it stores in an attribute is valid until its next call.

    Args:
        method: of a learner; what it takes and returns is tensors, also in nested tuples, lists and dicts.
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The method of a copy of the learner, not compiled."""
        return types.MethodType(self.function, copy.deepcopy(self.learner, memo))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shapes = shapes_of(args)
        self.calls += 1
        if self.calls == 1 and not kwargs:
            return self._first(args, shapes)
        if shapes != self.shapes or kwargs:
            return self.function(self.learner, *args, **kwargs)
        if self.calls & (self.calls - 1) and self.calls % 100:
            results = self.fast(self.learner, *args)
            return clones(results) if self.reuses_memory else results
        try:
            results = self.checked(self.learner, *args)
            if self.calls == 2:  # results that were on the stack are copied to the same memory in every call
                self.reuses_memory = bool(addresses(results) & addresses(self.first_results))
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
        for make in (self._load, self._compile):
            try:
                with own_generators(0, torch.device("cpu")):  # compilers draw random numbers, environments may too
                    self.checked = make(args, shapes)
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

    def _directory(self, shapes: Any) -> Path:
        """Where the compiled code is kept: the name is a digest of what it depends on.

        Raises:
            OSError: its source cannot be read, as in a notebook, or was changed after this process has started.
        """
        kind = type(self.learner)
        code = [self.function.__module__, self.function.__qualname__, kind.__module__, kind.__qualname__]
        cpu = sorted(torch.cpu.get_capabilities().items())
        machine = [torch.__version__, sys.version, cpu, torch.get_num_threads()]
        process = [os.environ.get("RANK"), os.environ.get("WORLD_SIZE")]
        files = sources(self.function.__code__.co_filename)
        parts = [code, self.settings, shapes, self.OPTIONS, machine, process, files]
        return CACHE / digest(repr(parts).encode())[:32]

    def _load(self, args: tuple[Any, ...], shapes: Any) -> Any:
        directory = self._directory(shapes)
        for name, value in json.loads((directory / DIGESTS).read_text()).items():
            if digest((directory / name).read_bytes()) != value:
                raise ValueError(f"{directory / name} is damaged")
        with environ(TORCHINDUCTOR_CACHE_DIR=str(directory), TORCHINDUCTOR_VEC_ISA_OK="1"):
            code = BytesIO((directory / CODE).read_bytes())
            compiled = torch.compiler.load_compiled_function(code, f_globals=self.function.__globals__)
        os.utime(directory)
        return compiled

    def _compile(self, args: tuple[Any, ...], shapes: Any) -> Any:
        self.compiling()
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            torch._dynamo.config.trace_autograd_ops = True  # lets torch.autograd.grad be part of the graph
        with contextlib.suppress(OSError):
            CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = CACHE if CACHE.is_dir() and os.access(CACHE, os.W_OK) else None  # None: that of temporary files
        with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as temporary:
            with environ(TORCHINDUCTOR_CACHE_DIR=temporary):
                options = {**self.OPTIONS, "guard_filter_fn": storable}
                function: Any = torch.compile(self.function, fullgraph=True, dynamic=False, options=options)
                compiled = function.aot_compile(((self.learner, *args), {}))
            with contextlib.suppress(Exception):  # such as a full disk: then it is compiled again the next time
                keep(compiled, Path(temporary), self._directory(shapes))
        return compiled


def storable(guards: Sequence[Any]) -> list[bool]:
    """Which guards can hold in another run: not those on the identity of an object, or on globals of other modules."""
    return [
        IDENTITY.isdisjoint({guard.guard_type, *guard.derived_guard_types})
        and not (guard.is_global and "G['__" in guard.name)  # PyTorch's own name of another module
        for guard in guards
    ]


def keep(compiled: Any, temporary: Path, directory: Path) -> None:
    """Move compiled code, and the files that PyTorch has written with it, from a temporary directory to its own."""
    compiled.save_compiled_function(str(temporary / CODE))
    files = [path for path in temporary.rglob("*") if path.is_file()]
    digests = {str(path.relative_to(temporary)): digest(path.read_bytes()) for path in files}
    (temporary / DIGESTS).write_text(json.dumps(digests))
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)  # damaged, or no longer right
    else:
        directory.unlink(missing_ok=True)
    temporary.rename(directory)
    for old in sorted(directory.parent.iterdir(), key=lambda path: -path.stat().st_mtime)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sources(first: str) -> list[str]:
    """Digests of a source file, of the script, and of all modules that were imported from files and not from libraries.

    Raises:
        OSError: the first one cannot be read, or one was changed after this process has started.
    """
    # What PyTorch generates has no __spec__.
    specs = [getattr(module, "__dict__", {}).get("__spec__") for module in list(sys.modules.values())]
    files = {getattr(spec, "origin", None) for spec in specs} | {getattr(sys.modules["__main__"], "__file__", None)}
    paths = [Path(file) for file in sorted(filter(None, map(str, files))) if file.endswith(".py")]
    own = [path for path in paths if not any(path.is_relative_to(library) for library in LIBRARIES)]
    paths = [Path(first), *(path for path in own if path.is_file())]
    if changed := [path for path in paths if path.stat().st_mtime > STARTED]:
        raise OSError(f"{changed[0]} was changed after this process has started")
    return [digest(path.read_bytes()) for path in paths]


@contextlib.contextmanager
def environ(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def shapes_of(args: Sequence[Any]) -> list[Any]:
    """Shape, type and strides of the tensors in nested tuples and lists; other arguments as they are."""
    return [
        (arg.shape, arg.dtype, arg.stride(), arg.requires_grad)
        if isinstance(arg, torch.Tensor)
        else shapes_of(arg)
        if isinstance(arg, (tuple, list))
        else arg
        for arg in args
    ]


def clones(results: Any) -> Any:
    """Nested tuples, lists and dicts with copies of their tensors."""
    if isinstance(results, torch.Tensor):
        return results.clone()
    if isinstance(results, dict):
        return {name: clones(result) for name, result in results.items()}
    if not isinstance(results, (tuple, list)):
        return results
    copies = [item.clone() if type(item) is torch.Tensor else clones(item) for item in results]
    return type(results)(*copies) if hasattr(results, "_fields") else type(results)(copies)


def addresses(results: Any) -> set[int]:
    """Where the tensors in nested tuples, lists and dicts lie in memory."""
    if isinstance(results, torch.Tensor):
        return {results.data_ptr()}
    items = results.values() if isinstance(results, dict) else results
    return set().union(*map(addresses, items)) if isinstance(results, (dict, tuple, list)) else set()


def compile_methods(learner: object, config: RunSettings, *names: str) -> None:
    """Put methods of a learner under torch.compile, see `Compiled`; print why, once, if one cannot be compiled.

    Unless `config.quiet`, say that compiling takes a while.
    """
    of_the_run = {field.name for field in dataclasses.fields(RunSettings)} - {"device"}
    of_the_run -= {field.name for field in dataclasses.fields(NetworkSettings)}
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in of_the_run}
    reported: list[str] = []
    announced = config.quiet or int(os.environ.get("RANK", "0")) > 0

    def compiling() -> None:
        nonlocal announced
        if not announced:
            print("compiling, once for these settings: half a minute, or a minute on a slow machine", flush=True)
        announced = True

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
