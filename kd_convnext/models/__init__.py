"""Backbones, feature taps and heat maps."""

from kd_convnext.models.backbones import Backbone, BackboneSpec, Stage, build_backbone
from kd_convnext.models.taps import FeatureTaps, TapSpec

__all__ = ["Backbone", "BackboneSpec", "FeatureTaps", "Stage", "TapSpec", "build_backbone"]
