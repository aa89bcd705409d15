"""Words of the command line for the smallest networks."""

import json

from helpers.tiny import CONVNEXT, SWIN

TINY = [
    "--data.split.ratios=[0.5,0.25,0.25]",
    "--data.upscaler=bicubic",
    "--data.crops.store_size=40",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.loader.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
]
SMALL_SWIN = [f"--model.backbone.args={json.dumps(SWIN)}", "--model.backbone.image_size=32"]
OFFLINE = ["--model.backbone.pretrained=false"]


def convnext(key):
    arguments = json.dumps(CONVNEXT)
    return [f"--model.{key}.args={arguments}", f"--model.{key}.name=convnext_tiny", f"--model.{key}.image_size=32"]
