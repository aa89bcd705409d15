"""The metrics of every stage, as a public import path (:mod:`kd_convnext.evaluation.metrics`)."""

from kd_convnext.evaluation.metrics import CALIBRATION_BINS, METRIC_NAMES, classification_metrics

__all__ = ["CALIBRATION_BINS", "METRIC_NAMES", "classification_metrics"]
