# SPDX-License-Identifier: Apache-2.0
"""What runs in Job pods: import a model, compress it, measure it.

A Job is a pure function of its task (`kompakt.api.job`). Only `models.load`, `models.export` and
the torch steps of `compress` import torch, each when it is called: fetching and measuring never do.
"""
