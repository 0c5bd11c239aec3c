"""What a checkpoint holds of a run, and how a run continues from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from environments import UsageError
from environments.processes import ProcessVectorEnv
from environments.states import UnreadableError, get_state, set_state
from training.checkpoint import FORMAT, fitting
from training.generators import generator_states, restore_generators, seed_all
from training.policy import spaces_state

if TYPE_CHECKING:
    from training.run import Run

RUN_STATE = {"format", "config", "spaces", "worlds", "log", "evaluations", "generators", "wall_time"}
RUN_STATE |= {"timestep", "total_timesteps", "next_save"}
"""What a checkpoint holds besides the parts of the learner."""


def run_state(run: Run, loop: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run, as tensors and plain data.

    Args:
        loop: the variables of its training loop.
    """
    try:
        env = run.env.get_states() if isinstance(run.env, ProcessVectorEnv) else run.env
        parts = {"env": env, "episodes": vars(run.episodes), "loop": dict(loop), "generators": generator_states()}
        world = get_state(parts)
    except UnreadableError as error:
        world = str(error)
    device = torch.device(run.config.device)
    return {name: part.state_dict() for name, part in run.parts.items()} | {
        "timestep": run.timestep,
        "total_timesteps": run.config.total_timesteps,
        "wall_time": run.wall_time,
        "next_save": run.next_save,
        "generators": {
            "policy": run.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
        "spaces": spaces_state(run.policy),
        "evaluations": run.evaluations.state_dict(),
        "worlds": run.ranks.all_gather_object(world),
        "log": run.log.mark(),
    }


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Continue a run where a checkpoint was written.

    Its environments go on where they were if their state could be read, and can be restored; else in new episodes.
    """
    if state["format"] < FORMAT:
        raise UsageError(
            f"--resume {run.directory}: the checkpoint was written by an older version of these scripts, and"
            " cannot be resumed: use the commit in its config.json, or start a new run"
        )
    if unmatched := (state.keys() - RUN_STATE) ^ run.parts.keys():
        names = ", ".join(sorted(unmatched))
        raise UsageError(
            f"--resume {run.directory}: only one of the checkpoint and this script has {names};"
            " use the commit in its config.json, or start a new run"
        )
    with fitting(run.directory):
        run.timestep, run.elapsed_before = int(state["timestep"]), float(state["wall_time"])
        before, now = int(state["total_timesteps"]), run.config.total_timesteps
        if now < min(before, run.timestep):
            raise UsageError(f"--total-timesteps {now} is less than the {run.timestep} that the run has done already")
        for name, part in run.parts.items():
            part.load_state_dict(state[name])
        run.next_save = int(state["next_save"])
        run.log.restore(state["log"])
        run.evaluations.load_state_dict(state["evaluations"])
        seed_all(run.env_seed, run.ranks.rank)  # for new episodes
        why = restore_world(run, state["worlds"])
        generators = state["generators"]
        run.generator.set_state(generators["policy"])
        torch.set_rng_state(generators["torch"])
        if generators["cuda"] is not None:
            torch.cuda.set_rng_state(generators["cuda"], run.config.device)
    run.log.truncate()
    what = f"in new episodes, since {why}" if why else "where they were"
    run.say(f"resumed at timestep {run.timestep}, the environments {what}")
    if now > before:
        left, annealed = (max(0.0, 1 - run.timestep / total) for total in (now, before))
        run.say(
            f"--total-timesteps was {before} and is {now} now: what is annealed over a run, such as learning rates, is"
            f" at {left:.0%} of its first value, not at {annealed:.0%}; returns may fall for a while"
        )


def restore_world(run: Run, worlds: list[Any]) -> str:
    """Restore the environments of a run, the variables of its loop and the generators; if that cannot be, says why."""
    if not worlds:
        raise ValueError("it has no environments")
    if len(worlds) != run.ranks.world_size:
        return f"there were {len(worlds)} ranks"
    for world in worlds:
        if isinstance(world, str):
            return f"their state cannot be read: it holds {world}"
    try:
        world = set_state({"env": run.env}, worlds[run.ranks.rank])
        if isinstance(run.env, ProcessVectorEnv):
            run.env.set_states(world["env"])
    except UnreadableError as error:
        return f"their state cannot be restored: it holds {error}"
    vars(run.episodes).update(world["episodes"])
    restore_generators(world["generators"])
    device = run.config.device
    run.resumed = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in world["loop"].items()}
    return ""
