"""Numbers the layers of a backbone from its input to its head, as timm groups them."""

from collections.abc import Callable
from typing import Any, cast

from timm.models import group_parameters
from torch import nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.token_head import TokenHead


def layer_numbers(backbone: Backbone, *, stages: bool = False) -> dict[nn.Parameter, int]:
    """Returns the layer of each parameter: 0 for the stem, then one a block, and last the head.

    Args:
        backbone: The network.
        stages: One a stage in place of one a block; a plain transformer has no stages but its blocks.

    Raises:
        ConfigError: timm does not know the layers of this network.
    """
    network = backbone.network
    vit = network.vit if isinstance(network, TokenHead) else network
    if not hasattr(vit, "group_matcher"):
        what = f"timm does not know the layers of {backbone.name}"
        raise ConfigError(Finding("backbone.name", what, "Use another network, or treat all of its layers alike."))
    names = group_parameters(vit, cast(Any, vit).group_matcher(coarse=stages), reverse=True)
    head = {id(parameter) for parameter in backbone.head_parameters()}
    last = max(names.values()) + (0 if vit is network else 1)
    # Whatever stands behind the last block (norms, the head) is one layer.
    numbers = {parameter: int(names.get(name, last)) for name, parameter in vit.named_parameters()}
    return numbers | {parameter: last for parameter in network.parameters() if id(parameter) in head}


def freeze_all_but_last(backbone: Backbone, blocks: int) -> None:
    """Freezes a backbone but for its head and its last blocks.

    Args:
        backbone: The network.
        blocks: How many blocks go on learning, at least 1; norms between the last of them and the head learn too.

    Raises:
        ConfigError: It has fewer blocks, or timm does not know its layers.
    """
    numbers = layer_numbers(backbone)
    last = max(numbers.values())
    if not 1 <= blocks < last:
        what = f"{blocks} of {last - 1} blocks of {backbone.name}"
        raise ConfigError(Finding("--model.blocks", what, f"Use 1 to {last - 1}; all of them are finetune: full."))
    for parameter, number in numbers.items():
        parameter.requires_grad_(number >= last - blocks)


def rest_frozen(network: nn.Module, learns: Callable[[nn.Parameter], bool]) -> list[nn.Module]:
    """Sets frozen modules to evaluation mode: their batch norms keep their statistics, and they drop nothing out.

    Frozen is what has parameters of which none learns.

    Args:
        network: The network.
        learns: Whether a parameter learns at present.

    Returns:
        The modules that were in training mode.
    """
    resting = []
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(learns(parameter) for parameter in parameters):
            resting += [part for part in module.modules() if part.training]
            module.eval()
    return resting


def layer_scales(backbone: Backbone, decay: float) -> dict[nn.Parameter, float]:
    """Computes learning rates that fall from the head to the stem (Bao et al., "BEiT", 2021, section 3.1).

    Args:
        backbone: The network.
        decay: Factor from one layer to the one before it, above 0 and at most 1.

    Returns:
        ``decay`` to the power of the layer's distance from the head, for each parameter.

    Raises:
        ConfigError: timm does not know its layers.
    """
    numbers = layer_numbers(backbone)
    last = max(numbers.values())
    return {parameter: decay ** (last - number) for parameter, number in numbers.items()}


def first_epochs(backbone: Backbone, head_epochs: int, unfreeze_epochs: int) -> dict[nn.Parameter, int]:
    """Plans when the parameters of the body begin to learn.

    Args:
        backbone: The network.
        head_epochs: Initial epochs in which the head learns alone.
        unfreeze_epochs: Epochs from one stage to the one before it; 0 for all at once.

    Returns:
        The first epoch of each that learns, where that is not 0.

    Raises:
        ConfigError: Stages are to begin one after the other, and timm does not know them.
    """
    body = [parameter for parameter in backbone.body_parameters() if parameter.requires_grad]
    first = dict.fromkeys(body, head_epochs)
    if unfreeze_epochs:
        numbers = layer_numbers(backbone, stages=True)
        last = max(numbers.values())
        first = {parameter: max(head_epochs, (last - numbers[parameter]) * unfreeze_epochs) for parameter in body}
    return {parameter: epoch for parameter, epoch in first.items() if epoch}
