"""Evaluate a trained run, record a video of it, or draw its policy.

python evaluate.py runs/DIR --episodes 100 --seed 7          # the last line is one JSON object
python evaluate.py runs/DIR --video film.mp4                 # one episode
python evaluate.py runs/DIR --policy-map map.png
python evaluate.py runs/DIR --export policy.onnx
"""

import dataclasses
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers import RecordVideo
from tqdm import tqdm

import environments
from environments import EnvFn, UsageError, first_line
from training import Policy, evaluate, load_policy
from training.cli import fail, tyro_cli
from training.export import SUFFIXES, export_policy
from training.files import check_writable, load_config
from training.policy import EVALUATION_ENVS, load_critic
from utils import plot_maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Play whole episodes with the policy of a run; print mean, deviation and minimum of the returns as JSON."""

    directory: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    episodes: int | None = None
    """Episodes to play; if not given, 100, and with --video or --render 1."""
    seed: int = 0
    """Seed of the environments and of sampled actions."""
    best: bool = False
    """Play the best policy of the evaluations during the run (--eval-interval), instead of the last one."""
    stochastic: bool = False
    """Sample actions, as in training, instead of taking the mode of the policy (the most likely action)."""
    env_fn: str | None = None
    """Function that makes the environment, as module:function, if a run was started with another one or from Python."""
    video: Path | None = None
    """Record all episodes in one video file (.mp4)."""
    render: bool = False
    """Show the episodes in a window."""
    export: Path | None = None
    """Play nothing: write the policy, from observations to actions, to this file: .onnx, or .pt2 (torch.export)."""
    policy_map: Path | None = None
    """Plot the action of the policy and the value of the critic over all states (.png); for Pendulum, and for
    observations of two bounded entries and actions of one."""

    def validate(self) -> None:
        """Raise a `UsageError` for the first setting that cannot be."""
        if self.episodes is not None and self.episodes < 1:
            raise UsageError(f"--episodes {self.episodes} must be at least 1")
        if self.video and self.render:
            raise UsageError("--video and --render cannot be combined; choose one")
        if self.export and (self.video or self.render or self.policy_map):
            raise UsageError("--export plays nothing, and cannot be combined with --video, --render or --policy-map")
        if self.policy_map and self.best:
            raise UsageError("--policy-map draws the critic, of which --best has none; leave one of them out")
        endings = {"video": (".mp4",), "policy_map": (".png",), "export": SUFFIXES}
        for name, suffixes in endings.items():
            flag, path = f"--{name.replace('_', '-')}", getattr(self, name)
            if path:
                if path.suffix not in suffixes:
                    raise UsageError(f"{flag} {path} must end in {' or '.join(suffixes)}")
                if path.is_dir():
                    raise UsageError(f"{flag} {path} is a directory; name a file")
                check_writable(flag, path.parent)


def watch(
    policy: Policy, env_id: str, env_fn: EnvFn | None, env_kwargs: dict[str, Any], config: Config
) -> dict[str, Any]:
    """Evaluate on episodes played one after the other, shown in a window or recorded as a video."""
    flag, mode = ("--video", "rgb_array") if config.video else ("--render", "human")
    camera = {} if env_fn or {"camera_id", "camera_name"} & env_kwargs.keys() else environments.following_camera(env_id)
    with tempfile.TemporaryDirectory() as folder, tqdm(desc=flag[2:], unit=" steps", disable=None) as bar:

        def make() -> gym.Env:
            env = environments.make_env(env_id, env_fn, camera | env_kwargs, render_mode=mode)
            if config.render and hasattr(env.unwrapped, "mujoco_renderer") and not has_screen():
                raise UsageError("there is no screen; use --video FILE.mp4")  # MuJoCo would end the process
            if config.video:  # one video of all episodes
                env = RecordVideo(
                    env, f"{folder}/film", lambda i: i == 0, video_length=sys.maxsize, disable_logger=True
                )
            return env

        try:
            options: dict[str, Any] = {"num_envs": 1, "env_kwargs": {}, "before_step": bar.update}
            score = evaluate(policy, env_id, config.episodes or 1, config.seed, config.stochastic, make, **options)
        except UsageError as error:
            hint = "; the function must take render_mode, and give it to the environment" if env_fn else ""
            raise UsageError(f"{flag} failed: {first_line(error)}{hint * ('render_mode' in str(error))}") from error
        except Exception as error:  # no screen, no OpenGL, no encoder: each library has errors of its own
            hint = "; without a screen, MuJoCo needs MUJOCO_GL=egl or osmesa" if "OpenGL" in str(error) else ""
            hint += f"; implement render() of {env_id}" if isinstance(error, NotImplementedError) else ""
            raise UsageError(f"{flag} failed: {type(error).__name__}: {first_line(error)}{hint}") from error
        if config.video:
            films = [*Path(folder).glob("film/*.mp4")]
            if not films:
                raise UsageError(f"--video failed: render() of {env_id} must return a uint8 array (height, width, 3)")
            config.video.parent.mkdir(parents=True, exist_ok=True)
            config.video.write_bytes(films[0].read_bytes())
    return score


def has_screen() -> bool:
    """Whether windows can be shown."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def draw_policy_map(path: Path, directory: Path, policy: Policy, env_id: str) -> None:
    """Draw the policy's mode and the critic's value over a state space of two dimensions."""
    space: Any = policy.observation_map.space
    if "Pendulum-v" in env_id and space.shape == (3,):
        names, low, high = ("angle from upright (rad)", "angular speed (rad/s)"), (-np.pi, -8.0), (np.pi, 8.0)
    elif space.shape == (2,) and np.isfinite([space.low, space.high]).all():
        names, low, high = ("observation 0", "observation 1"), space.low, space.high
        if env_id.startswith("MountainCar"):
            names = ("position", "velocity")
    else:
        raise UsageError(f"--policy-map needs observations of two bounded entries, or Pendulum; {env_id} has neither")
    x, y = (np.linspace(a, b, 201) for a, b in zip(low, high, strict=True))
    states = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
    observations = states
    if space.shape == (3,):
        observations = np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1)
    actions = policy(observations).reshape(len(states), -1)
    if actions.shape[1] != 1:
        raise UsageError(f"--policy-map needs actions of one entry; those of {env_id} have {actions.shape[1]}")
    values = load_critic(directory, policy)(observations)
    panels = {"action (mode of the policy)": actions, "value (discounted return of normalized rewards)": values}
    maps = {title: numbers.reshape(len(y), len(x)) for title, numbers in panels.items()}
    plot_maps(path, x, y, names, maps, f"A2C: {env_id}")


def main() -> None:
    torch.set_num_threads(1)
    try:
        config = tyro_cli(Config, sys.argv[1:])
        config.validate()
        saved = load_config(config.directory)
        name = saved.get("env_fn") if config.env_fn is None else config.env_fn
        env_fn = environments.import_function(name, "--env-fn") if name is not None and not config.export else None
        policy, env_id = load_policy(config.directory, env_fn, config.best)
        if config.export:
            config.export.parent.mkdir(parents=True, exist_ok=True)
            export_policy(policy, config.export)
            print(json.dumps({"env": env_id, "export": str(config.export)}))
            return
        kwargs = saved.get("env_kwargs", {})
        if config.policy_map:
            draw_policy_map(config.policy_map, config.directory, policy, env_id)
        if config.video or config.render:
            score = watch(policy, env_id, env_fn, kwargs, config)
        else:
            options: dict[str, Any] = {"num_envs": EVALUATION_ENVS[saved["script"]], "env_kwargs": kwargs}
            score = evaluate(policy, env_id, config.episodes or 100, config.seed, config.stochastic, env_fn, **options)
    except UsageError as error:
        fail(error, 2)
    except KeyboardInterrupt as stop:
        fail(stop, 128 + signal.SIGINT)
    except Exception as error:  # an environment can raise anything
        fail(RuntimeError(f"evaluating {config.directory} failed: {type(error).__name__}: {first_line(error)}"), 1)
    print(json.dumps(score))


if __name__ == "__main__":
    main()
