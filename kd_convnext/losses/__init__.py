"""The loss terms of distillation and the objective that sums them."""

from kd_convnext.losses.class_counts import CountedTerm
from kd_convnext.losses.ensemble import Ensemble
from kd_convnext.losses.eq5 import Eq5
from kd_convnext.losses.features.attention import AttentionTransfer
from kd_convnext.losses.features.cosine import CosineEmbedding
from kd_convnext.losses.features.feature_maps import FeatureLoss, FeatureMaps
from kd_convnext.losses.features.masked_generative import MaskedGenerative
from kd_convnext.losses.features.relational import Relational
from kd_convnext.losses.features.unlike import StageLogits, UnlikeMaps
from kd_convnext.losses.labels.class_balanced import ClassBalanced
from kd_convnext.losses.labels.cross_entropy import BalancedSoftmax, CrossEntropy
from kd_convnext.losses.labels.focal import Focal, FocalLoss
from kd_convnext.losses.labels.ldam import LDAM
from kd_convnext.losses.logits.balanced import Balanced
from kd_convnext.losses.logits.confident import Confident
from kd_convnext.losses.logits.correlation import Correlation
from kd_convnext.losses.logits.decoupled import Decoupled
from kd_convnext.losses.logits.prior_removed import PriorRemoved
from kd_convnext.losses.logits.soft_targets import SoftTargetLoss, SoftTargets
from kd_convnext.losses.logits.standardised import LogitStandardised
from kd_convnext.losses.objective import Losses, Objective
from kd_convnext.losses.schedule import WeightSchedule
from kd_convnext.losses.term import Needs, Outputs, Term, Widths

__all__ = [
    "LDAM",
    "AttentionTransfer",
    "Balanced",
    "BalancedSoftmax",
    "ClassBalanced",
    "Confident",
    "Correlation",
    "CosineEmbedding",
    "CountedTerm",
    "CrossEntropy",
    "Decoupled",
    "Ensemble",
    "Eq5",
    "FeatureLoss",
    "FeatureMaps",
    "Focal",
    "FocalLoss",
    "LogitStandardised",
    "Losses",
    "MaskedGenerative",
    "Needs",
    "Objective",
    "Outputs",
    "PriorRemoved",
    "Relational",
    "SoftTargetLoss",
    "SoftTargets",
    "StageLogits",
    "Term",
    "UnlikeMaps",
    "WeightSchedule",
    "Widths",
]
