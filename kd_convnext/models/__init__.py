"""Networks, and what looks into them."""

from kd_convnext.models.backbones import Backbone, BackboneSpec, Stage, build_backbone
from kd_convnext.models.regressors import Regressors
from kd_convnext.models.taps import FeatureTaps

__all__ = ["Backbone", "BackboneSpec", "FeatureTaps", "Regressors", "Stage", "build_backbone"]
