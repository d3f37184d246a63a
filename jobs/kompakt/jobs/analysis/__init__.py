# SPDX-License-Identifier: Apache-2.0
"""What a baseline's parts cost, and what its answers would miss most."""
