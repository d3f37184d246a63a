# SPDX-License-Identifier: Apache-2.0
"""Manifests as pure functions of specs: equal input, equal output, ready for server-side apply."""
