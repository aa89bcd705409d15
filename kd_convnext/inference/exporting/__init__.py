"""Exports checkpoints to ONNX, OpenVINO and torch, and compares the outputs."""
