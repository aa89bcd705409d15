"""Run folders with tiny trained networks, as fit leaves them."""

from pathlib import Path

import torch
import yaml

from helpers import tiny
from kd_convnext.checkpoints.format import KEY


def make_run(folder, source, module, epochs=1) -> Path:
    """Trains a little; returns the checkpoint."""
    trainer = tiny.trainer(folder, epochs)
    trainer.fit(module, datamodule=source)
    checkpoint = folder / "checkpoints" / "best.ckpt"
    trainer.save_checkpoint(checkpoint)
    source.split.write(folder / "split.csv", source.manifest)
    data = {"manifest": source.path, "cache_dir": source.cache_dir}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return checkpoint


def changed(checkpoint, target, **card) -> Path:
    """Copies a checkpoint with other entries in what it says of its data."""
    content = torch.load(checkpoint, weights_only=True)
    content[KEY]["card"] |= card
    content[KEY]["class_names"] = list(content[KEY]["card"]["class_names"])
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, target)
    return target


def copy_run(checkpoint, folder) -> Path:
    """Copies what calibration needs of a run; returns the copied checkpoint."""
    target = folder / "checkpoints" / "best.ckpt"
    target.parent.mkdir(parents=True)
    target.write_bytes(checkpoint.read_bytes())
    for name in ("split.csv", "config.yaml"):
        (folder / name).write_bytes((checkpoint.parent.parent / name).read_bytes())
    return target
