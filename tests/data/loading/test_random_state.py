"""What has been made before does not decide what a fit draws."""

import random

import numpy as np
import torch

from kd_convnext import SpecimenDataModule
from kd_convnext.data.crops.spec import CropSpec


def test_making_crops_draws_no_random_number(tiny_manifest, tmp_path):
    data = SpecimenDataModule(
        str(tiny_manifest),
        cache_dir=str(tmp_path),
        upscaler="spandrel",
        sr_weights="drawn-specimens-x4",
        crops=CropSpec(sr_max_side=16, store_size=32),
        image_size=32,
    )
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    data.setup("fit")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]
