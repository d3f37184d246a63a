# SPDX-License-Identifier: Apache-2.0
"""How long two artifacts take for the same texts, side by side. No torch here."""
