"""The 1x1 convolutions between feature maps."""

import pytest
import torch

from kd_convnext.errors import ConfigError
from kd_convnext.losses.projectors import Regressors


def test_regressors_bring_the_student_to_the_teachers_shape():
    student = [torch.randn(2, c, s, s) for c, s in ((4, 8), (6, 4), (8, 3))]
    teacher = [torch.randn(2, c, s, s) for c, s in ((5, 8), (7, 2), (9, 7))]
    regressors = Regressors([4, 6, 8], [5, 7, 9])
    mapped = regressors(student, teacher)
    assert [m.shape for m in mapped] == [t.shape for t in teacher]
    first, second, third = regressors
    torch.testing.assert_close(mapped[0], first(student[0]))
    # Resampling before or after a 1x1 convolution is the same; it is done where it is cheaper.
    torch.testing.assert_close(
        mapped[1], torch.nn.functional.adaptive_avg_pool2d(second(student[1]), 2), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        mapped[2], third(torch.nn.functional.interpolate(student[2], (7, 7), mode="bilinear")), rtol=1e-4, atol=1e-5
    )


def test_regressors_start_with_unit_gain_and_learn():
    torch.manual_seed(0)
    regressors = Regressors([64], [128])
    mapped = regressors([torch.randn(4, 64, 8, 8)], [torch.zeros(4, 128, 8, 8)])[0]
    assert mapped.std().item() == pytest.approx(1, abs=0.1)
    mapped.square().mean().backward()
    assert all(parameter.grad is not None for parameter in regressors.parameters())


def test_unequal_numbers_of_stages_are_refused():
    with pytest.raises(ConfigError, match="2 feature maps of the student, 1 of the teacher"):
        Regressors([4, 8], [4])
    with pytest.raises(ConfigError, match="at least one"):
        Regressors([], [])
    with pytest.raises(ValueError):
        Regressors([4], [4])([torch.zeros(1, 4, 2, 2)], [])
