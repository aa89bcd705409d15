"""A long fit takes no more memory, files, threads or processes at its end than near its beginning."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow

EPOCHS, SETTLED, LAST = 30, slice(10, 15), slice(25, 30)
MEMORY, OBJECTS = 3e6, 1500
"""Bytes and Python objects more, as means of five epochs 15 epochs apart: 0.2 MB and 100 objects an epoch."""


def taken() -> dict[str, int]:
    """What this process holds right now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free within the heap would hide what leaks
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "processes": len(children),
        "objects": len(gc.get_objects()),
    }


def fit(manifest: str, cache: str, folder: str) -> None:
    """Distils for some epochs with all that a run has, and prints what is held at the end of each."""
    import lightning.pytorch as pl
    from helpers import tiny
    from lightning.pytorch.loggers import CSVLogger

    from kd_convnext.training.checkpoint_files import BackgroundWriter
    from kd_convnext.training.checkpointing import RunCheckpoint
    from kd_convnext.training.command import CHECKPOINT_DEFAULTS
    from kd_convnext.training.header import RunHeader
    from kd_convnext.training.previews import AugmentationPreview, CurveFigures
    from kd_convnext.training.progress_bar import DataWaitBar
    from kd_convnext.training.record import RunRecord

    found = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:  # the epoch before is over, checkpoints too
                trainer.strategy.checkpoint_io.teardown()
                found.append(taken())

    source = tiny.data(manifest, cache, num_workers=1)
    teacher = tiny.teacher(source)
    first = tiny.trainer(folder, 1)
    first.fit(teacher, datamodule=source)
    checkpoint = f"{folder}/teacher.ckpt"
    first.save_checkpoint(checkpoint)
    source = tiny.data(manifest, cache, num_workers=1)
    settings = {
        "logger": CSVLogger(folder, name="", version=""),
        "enable_progress_bar": True,
        "enable_checkpointing": True,
        "plugins": [BackgroundWriter()],
        "callbacks": [
            RunCheckpoint(dirpath=f"{folder}/checkpoints", last_share=1e9, **CHECKPOINT_DEFAULTS),
            *(RunRecord(), RunHeader(), AugmentationPreview(), CurveFigures(), DataWaitBar(), Watch()),
        ],
    }
    trainer = tiny.trainer(folder, EPOCHS + 1, **settings)
    trainer.fit(tiny.student(source, checkpoint), datamodule=source)
    Path(folder, "found.json").write_text(json.dumps(found))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_fit_of_thirty_epochs_holds_no_more_at_its_end(tiny_manifest, tiny_cache, tmp_path):
    words = [str(tiny_manifest), tiny_cache, str(tmp_path)]
    paths = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == EPOCHS
    series = {name: np.array([each[name] for each in found]) for name in found[0]}
    for name in ("files", "threads", "processes"):
        assert set(series[name][5:].tolist()) == {series[name][5]}, (name, series[name].tolist())
    growth = {name: float(values[LAST].mean() - values[SETTLED].mean()) for name, values in series.items()}
    assert growth["memory"] < MEMORY, (series["memory"] / 1e6).round(1).tolist()
    # Objects that pile up are a leak long before their memory shows.
    assert growth["objects"] < OBJECTS, series["objects"].tolist()


if __name__ == "__main__":
    fit(*sys.argv[1:])
