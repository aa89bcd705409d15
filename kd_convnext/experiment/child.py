"""The process of a cell: ``python -m kd_convnext.experiment.child REQUEST``.

A crash, a full memory or a kill then ends one cell and not the experiment. The process ends with the one that started
it: it holds the other end of its standard input.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from kd_convnext.cli import main


def run_commands(commands: Sequence[Sequence[str]]) -> int:
    """Runs commands of the command line one after the other.

    Args:
        commands: The words of each.

    Returns:
        0, or the exit code of the first that failed.
    """
    for words in commands:
        code = main(words)
        if code:
            return code
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run_commands(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
