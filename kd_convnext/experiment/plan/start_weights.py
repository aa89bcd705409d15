"""Finds files of start weights that are not there, before the first cell of an experiment runs."""

from collections.abc import Sequence

from kd_convnext.data.crops.upscaling.weights import start_file, weights_dir
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.experiment.plan.cells import Cell


def require_start_weights(cells: Sequence[Cell]) -> None:
    """Refuses cells whose networks start from files that are not there.

    Args:
        cells: Those that are to run on this machine.

    Raises:
        ConfigError: With one finding for each method and file.
    """
    missing: dict[tuple[str, str], None] = {}
    for cell in cells:
        options = cell.config["model"].get("init_args", {})
        for network in (options.get("backbone"), options.get("student")):
            file = network.get("weights") if isinstance(network, dict) else None
            if isinstance(file, str) and not start_file(file).is_file():
                missing[cell.method, file] = None
    remedy = f"Make them first, correct the path, or put the file into {weights_dir()}."
    findings = [
        Finding(f"grid.methods.{method}", f"its start weights {file} are not there", remedy) for method, file in missing
    ]
    if findings:
        raise ConfigError(findings)
