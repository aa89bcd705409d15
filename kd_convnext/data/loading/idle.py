"""Names options of the data that have no effect beside others, so that nobody believes them in use."""

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.manifest.splits import SplitSpec


def idle_options(data: SpecimenDataModule) -> list[str]:
    """Lists options that were given and are not used.

    Args:
        data: As configured; its manifest is read.

    Returns:
        A sentence for each, without the place: ``sr_weights has no effect beside upscaler bicubic``.
    """
    found = data.crop_spec.idle()
    if data.unlabelled_path is None:
        found += [
            f"loader.{name} has no effect without unlabelled"
            for name in ("unlabelled_ratio", "unlabelled_sampling")
            if getattr(data.loader, name) != getattr(LoaderSpec, name)
        ]
    if data.unlabelled_path is None and data.unlabelled_columns is not None:
        found.append("unlabelled_columns has no effect without unlabelled")
    if data.loader.views is None and data.loader.views_seed is not None:
        found.append("loader.views_seed has no effect without loader.views")
    if data.ignores_labels and data.classes is not None:
        found.append("classes has no effect beside labels ignore")
    if (data.manifest.table["split"] != "").all():
        asked, usual = data.split_spec, SplitSpec()
        drawn = {"ratios": tuple(asked.ratios) != usual.ratios, "seed": asked.seed != usual.seed}
        found += [
            f"split.{name} has no effect beside the manifest's split column" for name, given in drawn.items() if given
        ]
    return found
