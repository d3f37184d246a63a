# SPDX-License-Identifier: Apache-2.0
"""Recipes at work: each step is a small class, found by its name in the recipe."""
