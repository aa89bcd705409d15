"""Presents a network of timm, torchvision or one's own as a backbone, for taps."""

from typing import cast

from torch import Tensor, nn

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.models.backbones import Backbone, stages_of


class ForeignNetwork(Backbone):
    """A network of images as it is: no normalisation, and stages only where it lists them as timm's networks do."""

    def __init__(self, network: nn.Module, image_size: int) -> None:
        """Wraps a network without changing it.

        Args:
            network: Takes floating images [B, C, H, W].
            image_size: Side of square images that it takes.

        Raises:
            ConfigError: It has no parameters, so that nothing is known of its input.
        """
        nn.Module.__init__(self)
        first = next((one for one in network.parameters() if one.ndim > 1), None)
        if first is None:
            what = f"{type(network).__name__} has no weights to tell the type of its input"
            raise ConfigError(Finding("taps", what, "Give a network of images."))
        convolution = next((one for one in network.modules() if isinstance(one, nn.Conv2d)), None)
        self.network = network
        self.name = type(network).__name__
        self.in_chans = 3 if convolution is None else convolution.in_channels
        self.image_size = image_size
        self.stages = stages_of(network)
        self.register_buffer("mean", first.new_zeros(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network on images as they are.

        Raises:
            ConfigError: It cannot take them.
        """
        try:
            return cast(Tensor, self.network(images))
        except Exception as error:
            # Networks of others assert, divide and index with the size of their input.
            what = f"{self.name} cannot take images of {' x '.join(map(str, images.shape[1:]))} ({error})"
            raise ConfigError(Finding("taps", what, "Give the side that it takes: image_size.")) from error
