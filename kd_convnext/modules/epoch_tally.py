"""Collects losses and logits of every step and aggregates them once per epoch."""

import torch
from torch import Tensor

from kd_convnext.evaluation.metrics import classification_metrics


class EpochTally:
    """Collects losses and answers of training steps; counts and averages them once an epoch.

    Nothing is looked at before: reading a number waits for a GPU, and Lightning's own bookkeeping of every step's
    values took 2 to 3 ms (``benchmarks/training/overhead.py``).
    """

    def __init__(self, num_classes: int) -> None:
        """Creates an empty tally.

        Args:
            num_classes: Number of classes, K.
        """
        self._metrics = classification_metrics(num_classes, prefix="train/")
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []
        self._images: list[Tensor] = []
        self._checked = 0

    def __len__(self) -> int:
        """Returns the number of steps since the last `clear`."""
        return len(self._terms)

    @property
    def samples(self) -> int:
        """Images since the last `clear`."""
        return sum(len(labels) for labels in self._labels)

    def clear(self) -> None:
        """Clears all steps."""
        self._logits, self._labels, self._terms, self._images = [], [], [], []
        self._checked = 0

    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Keeps a step.

        Args:
            terms: Name to scalar, the same names in every step.
            logits: [B, K].
            labels: int64 [B].
        """
        self._terms.append({name: value.detach() for name, value in terms.items()})
        self._logits.append(logits.detach())
        self._labels.append(labels)

    def expect(self, images: Tensor) -> None:
        """Keeps which images the coming step sees.

        Args:
            images: Their numbers, int64 [B].
        """
        self._images.append(images)

    def first_not_finite(self) -> tuple[int, str, list[int]] | None:
        """Finds the first step since the last call whose loss is not finite; on a GPU this waits for them.

        Returns:
            The first step with a term that is NaN or infinite, counted from 1; the term's name; the numbers of the
            step's images. None where all are finite.
        """
        new = self._terms[self._checked :]
        if not new:
            return None
        names = list(new[0])
        finite = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in new]).isfinite().cpu()
        begun, self._checked = self._checked, len(self._terms)
        if finite.all():
            return None
        place = int((~finite.all(dim=1)).nonzero()[0])
        # The sum comes first and says least.
        name = [name for name, good in zip(names, finite[place].tolist(), strict=True) if not good][-1]
        images = self._images[begun + place].tolist() if begun + place < len(self._images) else []
        return begun + place + 1, name, images

    def means(self) -> dict[str, Tensor]:
        """Returns each term's mean over this process's images, a scalar; a step weighs as many images as it has."""
        counts = [len(labels) for labels in self._labels]
        weights = torch.tensor(counts, dtype=torch.float32, device=self._labels[0].device) / sum(counts)
        return {name: torch.stack([terms[name].float() for terms in self._terms]) @ weights for name in self._terms[0]}

    def metrics(self) -> dict[str, Tensor]:
        """Returns the metrics of the steps' answers, by name; over the answers of all processes."""
        logits, labels = torch.cat(self._logits), torch.cat([_class_numbers(labels) for labels in self._labels])
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        metrics = self._metrics.to(labels.device)
        metrics.update(logits.float().softmax(dim=1), labels)
        found: dict[str, Tensor] = metrics.compute()
        metrics.reset()
        return found


def _class_numbers(labels: Tensor) -> Tensor:
    """Reads labels of both kinds: numbers, or probabilities, of which the likeliest counts; -1 stays -1."""
    if labels.ndim == 1:
        return labels
    return torch.where((labels >= 0).all(dim=1), labels.argmax(dim=1), -1)
