"""Many environments, each in a process of its own, stepped at the same time."""

import atexit
import contextlib
import functools
import io
import multiprocessing
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from environments.advice import advice
from environments.errors import EnvironmentFault, UsageError, close_env, first_line
from environments.states import UnreadableError, get_state, set_state

TIMEOUT = 60.0
"""Seconds that a worker may take for a step, a reset, or its state."""
CLOSING = 5.0
"""Seconds that all workers may take to close their environments, before they are killed."""


class Worker(gym.Wrapper):
    """An environment in a worker process: an exception becomes part of `info`, which AsyncVectorEnv hands over.

    Args:
        env: the environment.
        index: of the worker.
    """

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.index = index

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # workers begin with the same global generators, from which an environment may draw
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (for environments that draw from it)
            torch.manual_seed(seed)
        try:
            return self.env.reset(seed=seed, options=options or None)[0], {}
        except BaseException as error:
            return self.nothing, failed(error)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            observation, reward, terminated, truncated, _ = self.env.step(action)
            return observation, reward, terminated, truncated, {}
        except BaseException as error:
            return self.nothing, 0.0, False, False, failed(error)

    def close(self) -> None:
        if self.index == 0:  # its error speaks for all
            close_env(self.env)
            return
        with contextlib.suppress(Exception):
            self.env.close()

    @property
    def nothing(self) -> Any:
        """An observation in place of one that failed."""
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

    def get_state(self) -> np.ndarray | str:
        """The state of the environment and of the global generators of its process, as bytes; or why there is none."""
        generators = [random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()]  # noqa: NPY002
        try:
            state = get_state({"env": self.env, "generators": generators})
        except UnreadableError as error:
            return str(error)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return np.frombuffer(buffer.getvalue(), np.uint8)

    def set_state(self, states: Sequence[np.ndarray]) -> str:
        """Restore this worker's of the states that `get_state` returned; returns why that failed, if it did."""
        try:
            state = torch.load(io.BytesIO(states[self.index].tobytes()), weights_only=True)
            generators = set_state({"env": self.env}, state)["generators"]
        except Exception as error:  # a state of another environment
            return first_line(error)
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        torch.set_rng_state(generators[2])
        return ""


def failed(error: BaseException) -> dict[str, Any]:
    """What a worker reports of an exception: whether it is of a known kind, its message, and the traceback."""
    known = isinstance(error, (EnvironmentFault, UsageError))
    message = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
    return {"failed": (known, message, "".join(traceback.format_exception(error)))}


def begin_worker(parent: int) -> None:
    """Prepare a forked process, which ends with its parent: signals are for the parent, which ends its workers.

    Args:
        parent: process id of it.
    """
    os.setpgid(0, 0)  # a group with the processes that the environment starts
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which those processes would inherit
    torch.set_num_threads(1)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(CLOSING)
        os.killpg(0, signal.SIGKILL)

    # A worker that waits for its parent notices that it has ended; one in a long step does not.
    threading.Thread(target=end_with_parent, daemon=True).start()


class WorkerError(RuntimeError):
    """An environment raised an exception in its process; a note has the traceback."""


class ProcessVectorEnv(AsyncVectorEnv):
    """N environments in N forked processes. It helps where a step takes milliseconds.

    Args:
        env_fns: make the environments.
        name: of the environment, for messages.

    Raises:
        UsageError: the environments cannot be made, or differ in their spaces; or processes cannot be started.
        EnvironmentFault, WorkerError: from `reset` and `step`: a worker failed, died, or took longer than `TIMEOUT`.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], name: str) -> None:
        self.name, parent = name, os.getpid()
        self.parent_pipes, self.processes = [], []
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UsageError("--vector-backend async needs an operating system that can fork processes; use sync")
        errors: Any = multiprocessing.get_context("fork").SimpleQueue()

        def make(index: int) -> gym.Env:
            if os.getpid() == parent:  # AsyncVectorEnv makes an environment here, to see its spaces
                env = env_fns[index]()
                self.declared = getattr(env, "declared", env.observation_space)
                self.frame_stack = getattr(env, "frame_stack", 1)
                self.advice = advice(env)
                return Worker(env, -1)
            begin_worker(parent)
            try:
                return Worker(env_fns[index](), index)
            except BaseException as error:
                errors.put(first_line(error))
                os._exit(1)

        try:
            makers = [functools.partial(make, index) for index in range(len(env_fns))]
            # Not daemons, which could not start processes of their own.
            super().__init__(makers, context="fork", daemon=False, autoreset_mode=AutoresetMode.DISABLED)
        except BaseException as error:
            self.close()
            if isinstance(error, UsageError) or not isinstance(error, Exception):
                raise
            why = "a process has ended" if isinstance(error, EOFError) else first_line(error)
            if not errors.empty():  # of an environment that could not be made
                why = errors.get()
            elif "space" in why and isinstance(error, RuntimeError):  # of Gymnasium, in several sentences
                why = f"copies of {name} have different observation or action spaces"
            raise UsageError(f"--vector-backend async: {why}; use sync") from error
        atexit.register(self.close)  # before multiprocessing waits for its processes

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with self.watched():
            self.reset_async(seed, options)
            observations, infos = self.reset_wait(TIMEOUT)
        self.check(infos)
        return observations, {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        with self.watched():
            self.step_async(actions)
            *outcome, infos = self.step_wait(TIMEOUT)
        self.check(infos)
        return *outcome, {}

    @contextlib.contextmanager
    def watched(self) -> Any:
        """Say which worker has died or does not answer."""
        try:
            yield
        except (EOFError, OSError, multiprocessing.TimeoutError) as error:
            # A pipe breaks before its process has ended; so does the sentinel, which is a pipe as well.
            deadline = time.monotonic() + (0.0 if isinstance(error, multiprocessing.TimeoutError) else TIMEOUT)
            while all(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
                time.sleep(0.01)
            dead = [i for i, process in enumerate(self.processes) if not process.is_alive()]
            if dead:
                status = self.processes[dead[0]].exitcode
                raise EnvironmentFault(f"worker {dead[0]} of {self.name} died, with exit status {status}") from error
            raise EnvironmentFault(f"a worker of {self.name} did not answer within {TIMEOUT:g} s") from error

    def check(self, infos: dict[str, Any]) -> None:
        """Raise the first error that a worker reported."""
        for report in filter(None, infos.get("failed", ())):
            known, message, trace = report
            if known:
                raise EnvironmentFault(message)
            error = WorkerError(message)
            error.add_note(trace)
            raise error

    def get_states(self) -> list[np.ndarray]:
        """The states of all environments; raises an `UnreadableError` if one cannot be read."""
        states = self.call("get_state")
        for state in states:
            if isinstance(state, str):
                raise UnreadableError(state)
        return [state.copy() for state in states]  # with memory of its own, as a checkpoint saves it

    def set_states(self, states: Sequence[np.ndarray]) -> None:
        """Restore what `get_states` returned; raises an `UnreadableError` if that cannot be."""
        for error in filter(None, self.call("set_state", states)):
            raise UnreadableError(error)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with self.watched():
            self.call_async(name, *args, **kwargs)
            return self.call_wait(TIMEOUT)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Close all environments and end their processes, whatever they are doing.

        Args:
            timeout: seconds until processes are killed, with those that their environments have started; None: 5.
            terminate: kill them at once.
        """
        atexit.unregister(self.close)
        deadline = time.monotonic() + (0.0 if terminate else CLOSING if timeout is None else timeout)
        pipes = list(filter(None, self.parent_pipes))
        for pipe in pipes:
            with contextlib.suppress(OSError):  # the process has died
                pipe.send(("close", None))
        for process in self.processes:
            if process.pid is None:  # it could not be started
                continue
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):  # it has just begun, and has no group yet
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join()
        for pipe in pipes:
            pipe.close()
