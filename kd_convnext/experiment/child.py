"""Runs a command in the process of a cell: ``python -m kd_convnext.experiment.child fit ...``.

A crash, a full memory or a kill then ends one cell and not the experiment. The process ends with the one that started
it: that one holds the other end of its standard input.
"""

import os
import sys
import threading

from kd_convnext.common.parsing import exit_code
from kd_convnext.training.command import run_training


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(exit_code(lambda: run_training(sys.argv[1:]), sys.argv[1:]))
