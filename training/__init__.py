"""What surrounds training: settings and command line, the run with its logs and checkpoints, the trained policy."""

from environments import UsageError
from training.cli import main
from training.compiled import compile_methods
from training.errors import TrainingError
from training.generators import seed_all
from training.policy import Policy, evaluate, load_policy
from training.ranks import ALONE, Ranks
from training.resuming import prepared
from training.run import Callback, Run
from training.settings import RunSettings

__all__ = [
    "ALONE",
    "Callback",
    "Policy",
    "Ranks",
    "Run",
    "RunSettings",
    "TrainingError",
    "UsageError",
    "compile_methods",
    "evaluate",
    "load_policy",
    "main",
    "prepared",
    "seed_all",
]
