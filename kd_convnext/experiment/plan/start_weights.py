"""Finds start weights that are not there, before the first cell of an experiment runs."""

from collections.abc import Sequence

from kd_convnext.errors import ConfigError
from kd_convnext.experiment.plan.cells import Cell


def require_start_weights(cells: Sequence[Cell]) -> None:
    """Refuses cells whose networks start from files that are not there, or from published weights out of reach.

    Args:
        cells: Those that are to run on this machine.

    Raises:
        ConfigError: With one finding for each method and file.
    """
    networks = {
        (cell.method, str(network)): network
        for cell in cells
        for options in [cell.config["model"].get("init_args", {})]
        for network in (options.get("backbone"), options.get("student"))
        if isinstance(network, dict) and (network.get("weights") or network.get("pretrained"))
    }
    if not networks:
        return
    from kd_convnext.models.published import start_findings  # loads torch

    findings = start_findings((f"grid.methods.{method}", network) for (method, _), network in networks.items())
    if findings:
        raise ConfigError(findings)
