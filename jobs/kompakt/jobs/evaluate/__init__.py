# SPDX-License-Identifier: Apache-2.0
"""Paired evaluation of two artifacts. No torch here."""
