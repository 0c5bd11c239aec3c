"""What the ranks of a run have to agree on before it begins."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from training.files import CHECKPOINT, CONFIG
from training.logs import COLUMNS
from training.provenance import sources, versions
from training.ranks import RankError, Ranks
from training.settings import ConfigType


def check_agreement(config: ConfigType, ranks: Ranks) -> None:
    """Raise a `RankError` unless all ranks have the same settings, libraries and code."""
    mine: dict[str, Any] = {name: repr(value) for name, value in dataclasses.asdict(config).items()}
    mine |= versions() | {"the checksum of its scripts": str(sources())}
    for rank, theirs in enumerate(ranks.all_gather_object(mine)):
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise RankError(
                    f"rank {rank} has {theirs.get(name)} for {name}, and rank {ranks.rank} has {value};"
                    " start all ranks with the same settings, libraries and code"
                )


def local_copy(
    config: ConfigType, directory: Path, ranks: Ranks
) -> tuple[ConfigType, Path, tempfile.TemporaryDirectory[str] | None]:
    """Give every rank but 0 a temporary directory to run in, with rank 0's files if the run is resumed.

    Args:
        directory: where the run is kept.

    Returns:
        The settings to use, the directory where rank 0 keeps the run, and the temporary one; None on rank 0.
    """
    files = {}
    if config.resume and not ranks.rank:
        paths = [config.resume / name for name in (CONFIG, CHECKPOINT, *COLUMNS)]
        files = {path.name: path.read_bytes() for path in paths if path.exists()}
    files, home = ranks.all_gather_object((files, str(directory)))[0]
    if not ranks.rank:
        return config, directory, None
    folder = tempfile.TemporaryDirectory()
    copy = Path(folder.name) / "run"
    if config.resume:
        copy.mkdir()
        for name, content in files.items():
            (copy / name).write_bytes(content)
        config = dataclasses.replace(config, resume=copy)
    return dataclasses.replace(config, run_dir=copy, img_dir=copy, quiet=True), Path(home), folder
