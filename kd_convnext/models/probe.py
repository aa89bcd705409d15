"""Reads the outputs that loss terms need of a network: logits, tapped maps, embedding."""

from collections.abc import Callable, Sequence

from torch import Tensor

from kd_convnext.losses.term import Needs, Outputs, Widths
from kd_convnext.models.backbones import Backbone
from kd_convnext.models.taps import EmbeddingTap, FeatureTaps


class Probe:
    """Reads a backbone's outputs by hooks, which are registered here: before ``torch.compile`` sees the first batch.

    Attributes:
        needs: What is read beside the logits.
        taps: Hooks on the tapped modules; None where no maps are needed.
    """

    def __init__(self, backbone: Backbone, needs: Needs, tap_names: Sequence[str] | None = None) -> None:
        """Registers the hooks.

        Args:
            backbone: The network to look into.
            needs: What terms read of it.
            tap_names: Modules to tap where maps are needed; by default its stages, see `FeatureTaps`.

        Raises:
            ConfigError: A tap's name is unknown, or the backbone has no stages and no names are given.
        """
        self.needs = needs
        self.taps = FeatureTaps(backbone, tap_names, active=False) if Needs.MAPS in needs else None
        self._embedding = EmbeddingTap(backbone) if Needs.EMBEDDING in needs else None
        self._classes = backbone.num_classes

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The tapped modules, in order."""
        return () if self.taps is None else self.taps.names

    @property
    def widths(self) -> Widths:
        """Sizes of what is read."""
        channels = () if self.taps is None else self.taps.channels
        return Widths(self._classes, channels, 0 if self._embedding is None else self._embedding.width)

    def run(self, backbone: Callable[[Tensor], Tensor], images: Tensor) -> Outputs:
        """Runs the backbone; a function of its inputs alone, which ``torch.compile`` traces whole.

        Args:
            backbone: The probed backbone, or a module that calls it once.
            images: What it takes.

        Returns:
            Its logits, and the maps and the embedding where they are needed.
        """
        if self._embedding is None:
            logits, maps = self._mapped(backbone, images)
            return Outputs(logits, maps)
        (logits, maps), embedding = self._embedding.run(lambda given: self._mapped(backbone, given), images)
        return Outputs(logits, maps, embedding)

    def _mapped(self, backbone: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        if self.taps is None:
            return backbone(images), None
        logits, maps = self.taps.run(backbone, images)
        return logits, tuple(maps)
