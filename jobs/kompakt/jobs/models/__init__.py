# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: fetching, checking, loading into torch, exporting to ONNX."""
