"""A loss term as a user writes it, outside the package."""

from torch import Tensor

from kd_convnext.losses import Needs, Outputs, Term


class LogitDistance(Term):
    """Squared distance of the logits of student and teacher (Ba & Caruana, 2014): ``mean (z_s - z_t)^2``."""

    needs = Needs.LOGITS

    def __init__(self, weight: float = 1.0, centred: bool = True) -> None:
        super().__init__(weight)
        self.centred = centred

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor) -> Tensor:
        assert student.logits is not None and teacher is not None and teacher.logits is not None
        difference = student.logits.float() - teacher.logits.float()
        if self.centred:
            difference = difference - difference.mean(dim=1, keepdim=True)
        return difference.square().mean()
