"""The loss terms of distillation and the objective that sums them."""

from kd_convnext.losses.feature_maps import FeatureLoss
from kd_convnext.losses.focal import FocalLoss
from kd_convnext.losses.objective import DistillationLoss, LossTerms
from kd_convnext.losses.soft_targets import SoftTargetLoss

__all__ = ["DistillationLoss", "FeatureLoss", "FocalLoss", "LossTerms", "SoftTargetLoss"]
