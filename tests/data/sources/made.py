"""What a converter makes."""

from pathlib import Path
from typing import Any

from mmflow.data.make import Source


def made(source: Source, root: Path) -> list[tuple[str, dict[str, Any]]]:
    """(split, sample) of each item, in the order of the list."""
    return [(item.split, item.sample()) for item in source.items(root)]
