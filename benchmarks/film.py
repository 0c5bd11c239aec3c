"""Draw img/policies.gif: the trained policies in `policies/`, side by side.

    MUJOCO_GL=egl python -m benchmarks.film                 # without a screen; osmesa works as well
    python -m benchmarks.film --add runs/experiments/DIR    # copy the policy of a run into policies/ first

What is copied is what `evaluate.py` needs: settings, actor and normalizer. Such a run cannot be resumed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw

import environments
from benchmarks.measuring import PROJECT
from training import load_policy
from training.checkpoint import save_checkpoint
from training.files import CHECKPOINT, CONFIG, load_config
from training.policy import policy_state

POLICIES = PROJECT / "policies"
FIGURE = PROJECT / "img" / "policies.gif"
SIZE, TITLE = 180, 16
"""Pixels of a panel, and the height of its title."""
FRAMES, FRAMES_PER_SECOND = 70, 20


@dataclass(frozen=True, kw_only=True)
class Config:
    add: Path | None = None
    """Run whose policy is copied into policies/ first."""


def add(run: Path) -> None:
    """Copy the policy of a run into `policies/<env>`."""
    saved, (policy, _) = load_config(run), load_policy(run)
    directory = POLICIES / saved["env"]
    directory.mkdir(parents=True, exist_ok=True)
    saved |= {"run_dir": None, "img_dir": "img"}  # paths of the machine that trained it
    (directory / CONFIG).write_text(json.dumps(saved, indent=2) + "\n")
    (directory / CHECKPOINT).unlink(missing_ok=True)
    save_checkpoint(directory, policy_state(policy))


def panel(directory: Path) -> list[Image.Image]:
    """FRAMES frames of episodes of a policy, at FRAMES_PER_SECOND, with a title."""
    torch.set_num_threads(1)
    policy, env_id = load_policy(directory)
    env: Any = environments.make_env(env_id, None, environments.following_camera(env_id), render_mode="rgb_array")
    every = max(1, round(env.metadata["render_fps"] / FRAMES_PER_SECOND))
    observation, _ = env.reset(seed=0)
    frames: list[Image.Image] = []
    while len(frames) < FRAMES:
        frame = Image.new("RGB", (SIZE, SIZE + TITLE), "white")
        frame.paste(Image.fromarray(np.asarray(env.render())).resize((SIZE, SIZE)), (0, TITLE))
        ImageDraw.Draw(frame).text((4, 2), f"{env_id}, {load_config(directory)['script']} update", "black")
        frames.append(frame)
        for _ in range(every):
            observation, _, terminated, truncated, _ = env.step(policy(observation))
            if terminated or truncated:
                observation, _ = env.reset()
    env.close()
    return frames


def main(config: Config) -> None:
    if config.add:
        add(config.add)
    panels = [panel(directory) for directory in sorted(POLICIES.iterdir())]
    film = []
    for frames in zip(*panels, strict=True):
        image = Image.new("RGB", (SIZE * len(frames), SIZE + TITLE))
        for i, frame in enumerate(frames):
            image.paste(frame, (SIZE * i, 0))
        film.append(image.quantize(64))
    first, *others = film
    first.save(FIGURE, save_all=True, append_images=others, duration=1000 // FRAMES_PER_SECOND, loop=0, optimize=True)
    print(f"{FIGURE}: {FIGURE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
