# SPDX-License-Identifier: Apache-2.0
"""Decisions: pure functions from what was observed to what is to be done.

No I/O, no clock, no Kubernetes client.
"""
