"""torch.compile for the methods of a learner."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from environments import first_line

CHANGED = (
    "it uses a number or another Python object that has changed since the first call, which compiled code does not see;"
    " keep it in a tensor and change that in place, or pass it as an argument"
)
TORCH = str(Path(torch.__file__).parent)


class Compiled:
    """A method under torch.compile: compiled at its first call, for arguments of the shapes that it has there.

    Later calls run the compiled code directly, without torch.compile's guards and wrappers, which take as long as the
    computation. Captured tensors may be modified in place, but must keep their identity, shape and dtype. The guards
    are checked in calls 2, 4, 8 and so on: they fail if a number has changed. If they or compiling fail, the method
    runs uncompiled.

    Args:
        method: takes tensors and tuples of tensors; returns tensors, in nested tuples and dicts.
        failed: called with the error if compiling fails.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "cpp_wrapper": True,
        "memory_planning": True,  # one allocation per call, not one per buffer
        "size_asserts": False,
        # Products of a vector and a matrix become loops, fused with the surrounding code, instead of library calls.
        "post_grad_fusion_options": {"decompose_mm_pass": {"cpu_max_first_dimension_decomposition": 64}},
    }

    def __init__(self, method: Callable[..., Any], failed: Callable[[Exception], None]) -> None:
        self.method = method
        self.failed = failed
        self.fast: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.fast:
            return self.fast(*args)
        try:
            results, self.fast = self._compile(args)
        except Exception as error:  # a compiler can raise anything
            self.failed(error)
            self.fast = self.method
            results = self.method(*args)
        return results

    def _compile(self, args: tuple[Any, ...]) -> tuple[Any, Callable[..., Any]]:
        """Compile the method and call it once; returns what it returned, and the function to call from then on."""
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # which takes two seconds to import

        inputs: list[Tensor | None] = []
        outputs: list[Tensor] = []
        calls: list[Callable[[list[Any]], list[Tensor]]] = []
        graphs: list[Any] = []

        def inner_compile(*args: Any, **options: Any) -> Any:
            graph: Any = compile_fx_inner(*args, **options)
            call = graph.current_callable
            calls.append(call)

            def record(given: list[Any]) -> list[Tensor]:
                outputs[:] = call(given)
                return outputs

            graph.current_callable = record
            return graph

        def backend(graph: Any, example_inputs: list[Tensor]) -> Any:
            graphs.append(graph)
            inputs.extend(example_inputs)
            return compile_fx(graph, example_inputs, inner_compile=inner_compile, config_patches=self.OPTIONS)

        # Isolated, since torch.compile stops compiling a function after eight versions in the whole process.
        options: Any = {"backend": backend, "fullgraph": True, "isolate_recompiles": True, "dynamic": False}
        method = torch.compile(self.method, **options)
        # On a hit in the cache of AOTAutograd, inner_compile would not be called; compile_fx_inner has another cache.
        with torch._functorch.config.patch(enable_autograd_cache=False):
            results = method(*args)
        if len(calls) != 1 or list(map(id, flatten(results))) != list(map(id, outputs)):
            return results, method  # an output is an argument, for example, which the compiled code does not return
        call, sources, structure = calls[0], flatten(args), skeleton(results)
        is_flat = len(sources) == len(args)  # the usual case, in which the arguments need no flattening
        returns_tuple = isinstance(structure, tuple) and not any(item is not None for item in structure)
        places = [
            (place, i) for place, given in enumerate(inputs) for i, source in enumerate(sources) if given is source
        ]
        for place, _ in places:
            inputs[place] = None  # the first call's arguments are not kept

        count = 1

        def fast(*args: Any) -> Any:
            nonlocal count
            count += 1
            if not count & (count - 1):
                results = method(*args)
                outputs.clear()
                if len(graphs) > 1:  # it was compiled again
                    self.failed(ValueError(CHANGED))
                    self.fast = self.method
                return results
            given, sources = inputs.copy(), args if is_flat else flatten(args)
            for place, i in places:
                given[place] = sources[i]
            results = call(given)
            return tuple(results) if returns_tuple else unflatten(structure, iter(results))

        return results, fast


def flatten(value: Any) -> list[Tensor]:
    """The tensors in nested tuples and dicts, in order."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for item in value for tensor in flatten(item)] if isinstance(value, tuple) else [value]


def skeleton(value: Any) -> Any:
    """Nested tuples and dicts with None in place of the tensors."""
    if isinstance(value, dict):
        return {name: skeleton(item) for name, item in value.items()}
    return tuple(skeleton(item) for item in value) if isinstance(value, tuple) else None


def unflatten(structure: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of `flatten`, given the `skeleton`."""
    if isinstance(structure, dict):
        return {name: unflatten(item, tensors) for name, item in structure.items()}
    return tuple(unflatten(item, tensors) for item in structure) if structure is not None else next(tensors)


def compile_methods(learner: object, *names: str, quiet: bool = True) -> None:
    """Put methods of a learner under torch.compile, see `Compiled`; print why, once, if one cannot be compiled.

    Unless `quiet`, say that compiling takes a while.
    """
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        torch._dynamo.config.trace_autograd_ops = True  # lets torch.autograd.grad be part of the graph
    reported: list[str] = []

    def failed(name: str, error: Exception) -> None:
        where, why = untraceable(error), first_line(error)
        if where:
            why = f"torch.compile cannot trace {where}"
        if why not in reported:
            sys.stderr.write(f"{name} is not compiled, and slower: {why}\n")
        reported.append(why)

    if not (quiet or int(os.environ.get("RANK", "0"))):
        print("compiling in the first updates: some 20 s, or some 5 s from the cache of an earlier run", flush=True)
    for name in names:
        setattr(learner, name, Compiled(getattr(learner, name), functools.partial(failed, name)))


def untraceable(error: Exception) -> str:
    """The innermost line outside of PyTorch at which torch.compile gave up; empty if it is not known."""
    frames = [frame for frame in getattr(error, "real_stack", None) or [] if not frame.filename.startswith(TORCH)]
    return f"`{frames[-1].line}` ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
