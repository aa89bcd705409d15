"""Fills one crop cache from several devices and hosts by Lightning's engine: each crop is made by one rank."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.console import progress_bar
from kd_convnext.common.process import quiet_libraries
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.entries import write_entry
from kd_convnext.data.crops.cache.index import Index, Stamp
from kd_convnext.data.crops.cache.prepared import entry_path
from kd_convnext.data.crops.cache.reading import Cut, PhotographRegions, Reading, read_regions
from kd_convnext.data.crops.fidelity import Fidelity
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import Manifest


class Made(NamedTuple):
    """Result for one photograph: its stamp, and each region's pixels, or None where the entry exists already."""

    stamp: Stamp
    crops: list[tuple[Cut, tuple[Pixels, Fidelity | None] | None]]
    regions: int


def fill_over_ranks(
    manifest: Manifest, root: Path, spec: CropSpec, *, device: str, devices: int, num_nodes: int, verify: bool
) -> int | None:
    """Makes the crops that are missing, shared out over ranks; what cannot be made is left to a later `fill`.

    Every rank calls it; on one host Lightning starts the others itself, on several hosts torchrun or SLURM does.

    Args:
        manifest: The photographs.
        root: Folder of the cache, seen by every rank.
        spec: How crops are made.
        device: ``cpu``, ``cuda`` or another accelerator that Lightning knows.
        devices: Ranks on each host.
        num_nodes: Hosts.
        verify: Trust neither the index nor an entry's looks.

    Returns:
        How many crops all ranks made, or None on every rank but the first, which reports.

    Raises:
        CacheError: No space or no permission.
        UpscalerError: The weights or the device cannot be used.
    """
    quiet_libraries()
    writer = EntryWriter()
    trainer = pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=devices,
        num_nodes=num_nodes,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[writer],
    )
    trainer.predict(CropMaker(manifest, root, spec, verify), return_predictions=False)
    made = trainer.strategy.reduce(torch.tensor(writer.made, device=trainer.strategy.root_device), reduce_op="sum")
    return int(made) if trainer.is_global_zero else None


class CropMaker(pl.LightningModule):
    """Super-resolves the crops of one photograph a step.

    Attributes:
        cache: The cache of this rank, after ``setup``.
        regions: Crops to make by all ranks, once the loader is there.
    """

    cache: CropCache
    regions: int

    def __init__(self, manifest: Manifest, root: Path, spec: CropSpec, verify: bool) -> None:
        """Remembers what to make; see `fill_over_ranks`."""
        super().__init__()
        self.manifest, self.root, self.crop_spec, self.verify = manifest, root, spec, verify

    def setup(self, stage: str) -> None:
        """Loads the network where this rank computes."""
        self.cache = CropCache(self.root, self.crop_spec, str(self.trainer.strategy.root_device))

    def predict_dataloader(self) -> DataLoader[Reading]:
        """Returns the photographs with missing crops, as the first rank sees them: shares must fit together."""
        missing = self.cache.survey(self.manifest, verify=self.verify).missing if self.trainer.is_global_zero else ()
        missing = self.trainer.strategy.broadcast(missing)
        self.regions = sum(len(photograph.regions) for photograph in missing)
        dataset = PhotographDataset(missing, self.cache.spec, self.cache.salt)
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        # A network on the CPU takes all cores itself; one on a GPU waits for decoding.
        return DataLoader(dataset, batch_size=1, collate_fn=_only, num_workers=0 if on_cpu else 4)

    def transfer_batch_to_device(self, batch: Reading, device: torch.device, dataloader_idx: int) -> Reading:
        """Leaves crops where they are: the upscaler moves them itself."""
        return batch

    def predict_step(self, batch: Reading, batch_idx: int) -> Made:
        """Enlarges the missing crops of one photograph."""
        crops, cache = [], self.cache
        for cut in batch.cuts:
            there = cache.entry(entry_path(cache.folder, cut.key), self.verify) is not None
            crops.append((cut, None if there else cache.enlarged.make(cut.crop, cache.spec, cache.upscaler)))
        return Made(batch.stamp, crops, len(batch.cuts) + len(batch.failed))


class PhotographDataset(Dataset[Reading]):
    """Photographs, decoded and cut."""

    def __init__(self, photographs: tuple[PhotographRegions, ...], spec: CropSpec, salt: str) -> None:
        """Takes photographs with the regions wanted of each, and the configuration (`CropCache`)."""
        self.photographs, self.spec, self.salt = photographs, spec, salt

    def __len__(self) -> int:
        """Returns the number of photographs."""
        return len(self.photographs)

    def __getitem__(self, position: int) -> Reading:
        """Decodes one photograph."""
        return read_regions(self.photographs[position], self.spec, self.salt)


class EntryWriter(BasePredictionWriter):
    """Writes each rank's entries and index lines as they come; the first rank shows the progress.

    Attributes:
        made: Entries written by this rank.
    """

    index: Index
    advance: Callable[[int], None]

    def __init__(self) -> None:
        """Writes after every step, so that an interruption loses no finished crop."""
        super().__init__("batch")
        self.made = 0
        self._open = ExitStack()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the index of this process."""
        assert isinstance(pl_module, CropMaker)
        pl_module.cache.write_configuration()
        self.index = self._open.enter_context(pl_module.cache.open_index())
        shown = trainer.is_global_zero and pl_module.regions > 0
        self.advance = self._open.enter_context(progress_bar(pl_module.regions, shown))

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Stores the crops of one photograph."""
        assert isinstance(pl_module, CropMaker) and isinstance(prediction, Made)
        for cut, made in prediction.crops:
            if made is not None:
                write_entry(entry_path(pl_module.cache.folder, cut.key), *made)
                self.made += 1
            self.index.add(prediction.stamp, cut.region.box, cut.key)
        self.advance(prediction.regions * trainer.world_size)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the index."""
        self._open.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the index."""
        self._open.close()


def _only(readings: list[Reading]) -> Reading:
    return readings[0]
