"""The command line of the scripts."""

import ast
import contextlib
import ctypes
import dataclasses
import functools
import inspect
import io
import itertools
import json
import os
import signal
import sys
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import tyro

from environments import UsageError, first_line
from networks import NetworkSettings
from training.errors import TrainingError
from training.policy import EVALUATION_ENVS, evaluate
from training.ranks import RankError
from training.report import still_rising
from training.resuming import saved_settings
from training.run import Run
from training.settings import ConfigType, RunSettings, converted, type_name

JSON = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda texts: json_object(texts[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
"""How tyro reads a dict."""


def parse(config_class: type[ConfigType], args: list[str]) -> ConfigType:
    """Parse the flags of a script. Defaults are those of the resumed run, else of the class.

    Raises:
        UsageError: an argument that is not understood.
    """
    # A bare --reward-shaping means the built-in potential.
    for i in reversed(range(len(args))):
        if args[i].replace("_", "-") == "--reward-shaping" and (i + 1 == len(args) or args[i + 1].startswith("--")):
            args = [*args[: i + 1], "built-in", *args[i + 1 :]]
    config = grouped_cli(config_class, args, config_class())
    if config.resume:
        default = dataclasses.replace(saved_settings(config_class, config.resume), resume=config.resume)
        config = grouped_cli(config_class, args, default)
    return config


def grouped_cli(config_class: type[ConfigType], args: list[str], default: ConfigType) -> ConfigType:
    """`tyro.cli` for the settings of a script, in groups: the algorithm's, the networks', the run's."""
    names, network_names, run_names = (
        [field.name for field in dataclasses.fields(cls)] for cls in (config_class, NetworkSettings, RunSettings)
    )
    groups = {
        "algorithm": [name for name in names if name not in run_names],
        "networks": network_names,
        "run": [name for name in run_names if name not in network_names],
    }
    types, docs = typing.get_type_hints(config_class), attribute_docstrings(config_class)

    def reader(kind: Any) -> tuple[Any, ...]:
        return (JSON,) if typing.get_origin(kind) is dict else ()

    def field(name: str) -> Any:
        return dataclasses.field(default_factory=functools.partial(getattr, default, name))

    def group(title: str) -> Any:
        fields = [
            (name, Annotated[(types[name], *reader(types[name]), tyro.conf.arg(help=docs.get(name, "")))], field(name))
            for name in groups[title]
        ]
        return dataclasses.make_dataclass(title, fields, frozen=True)

    grouped = [(title, cls := group(title), cls()) for title in groups]
    everything = dataclasses.make_dataclass("Settings", grouped, frozen=True)
    options = {"config": (tyro.conf.OmitArgPrefixes,), "description": inspect.getdoc(config_class)}
    parsed = tyro_cli(everything, args, **options)
    return config_class(**{name: value for title in groups for name, value in vars(getattr(parsed, title)).items()})


def json_object(text: str) -> dict[str, Any]:
    """A JSON object from the command line; raises a `ValueError` if the text is none."""
    value = converted(text, dict[str, Any])
    if not isinstance(value, dict):
        raise ValueError(f"{text} must be {type_name(dict[str, Any])}")
    return value


def attribute_docstrings(cls: type) -> dict[str, str]:
    """The string below each annotated attribute in the source of a dataclass and its bases, by the attribute's name."""
    docs: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        definition: Any = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        for statement, following in itertools.pairwise(definition.body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                docs[ast.unparse(statement.target)] = " ".join(ast.literal_eval(following.value).split())
    return docs


def tyro_cli(config_class: Any, args: list[str], **options: Any) -> Any:
    """`tyro.cli`, with its error messages, which it prints in a box, as a `UsageError` of one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_class, args=args, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        # tyro prints a title, then the message, in a box or below a line, then more; only the message is kept.
        lines = [line.strip("│ ") for line in errors.getvalue().splitlines()[1:]]
        lines = list(itertools.dropwhile(lambda line: not line.strip("-"), lines))
        message = " ".join(itertools.takewhile(lambda line: line.strip("─╰╯-"), lines))
        raise UsageError(f"{message.rstrip('.')}; --help lists the flags") from None


def main(config_class: type[ConfigType], train: Callable[[ConfigType], Run]) -> None:
    """Run a script from the command line: train, print where the run is and the score of its policy, and exit."""
    torch.set_num_threads(1)  # for small networks, handing work to threads takes longer than the work
    keep_memory()
    try:
        config = parse(config_class, sys.argv[1:])
        if config.script == "step" and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("the step update is a single process: start it without torchrun, or use the epoch update")
        run = train(config)
        if run.config.quiet:
            sys.exit(run.exit_status)
        print(f"run: {run.directory}\nplot: {run.image_path}")
        if run.exit_status:
            print(f"interrupted at timestep {run.timestep}; continue with --resume {run.directory}")
        else:
            print_score(run)
            if still_rising(*run.log.episodes(), run.config.total_timesteps):
                print("the return was still rising: a longer run (--total-timesteps) may reach more")
            if best := run.evaluations.best:
                print(
                    f"best: {best['mean_return']:.1f} over {run.config.eval_episodes} episodes, at timestep"
                    f" {best['timestep']}; python evaluate.py {run.directory} --best plays it"
                )
    except UsageError as error:
        fail(error, 2)
    except (TrainingError, RankError) as error:
        fail(error, 1)
    except KeyboardInterrupt as stop:
        fail(stop, getattr(stop, "exit_status", 128 + signal.SIGINT))
    except OSError as error:  # a disk that is full before training has begun, for example
        fail(TrainingError(f"{error.filename or 'a file'} cannot be written: {error.strerror}"), 1)
    sys.exit(run.exit_status)


def print_score(run: Run) -> None:
    """Evaluate the final policy of a run and print its score, or in one line why that failed: the run is complete."""
    print("scoring the final policy over 20 episodes", flush=True)
    num_envs = EVALUATION_ENVS[run.config.script]
    try:
        # Seeds that training does not use.
        seed, kwargs = run.config.seed + 1_000_000, run.config.env_kwargs
        options: dict[str, Any] = {"env_fn": run.env_fn, "num_envs": num_envs, "env_kwargs": kwargs}
        score = evaluate(run.policy, run.config.env, 20, seed, **options)
        print(f"score: {score['mean_return']:.1f} +- {score['std_return']:.1f} over 20 episodes of the final policy")
    except KeyboardInterrupt:
        fail(KeyboardInterrupt(f"scoring was interrupted; the run in {run.directory} is complete"), 128 + signal.SIGINT)
    except Exception as error:  # an environment can raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        sys.stderr.write(f"scoring failed: {what}; the run in {run.directory} is complete\n")


def keep_memory() -> None:
    """Let glibc, if it is the C library, keep up to 256 MiB of freed memory for the next allocation.

    By default it returns the memory of an update's tensors to the system, and requests it again in the next update,
    which takes two thirds as long as the update itself.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, the largest value allowed
        libc.mallopt(-1, 256 * 2**20)  # M_TRIM_THRESHOLD


def fail(error: BaseException, status: int) -> NoReturn:
    """End the process with one line on standard error, in one write: several ranks may write at once."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split()) or 'interrupted'}\n")
    sys.exit(status)
