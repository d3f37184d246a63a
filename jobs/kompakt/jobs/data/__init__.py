# SPDX-License-Identifier: Apache-2.0
"""Labelled and unlabelled text: reading, checking, splitting."""
