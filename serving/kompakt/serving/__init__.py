# SPDX-License-Identifier: Apache-2.0
"""What runs in serving pods: the Open Inference Protocol server, and the comparator for shadow
traffic.

Arrow: serving → api. onnxruntime runs the models; torch is never imported here.
"""
