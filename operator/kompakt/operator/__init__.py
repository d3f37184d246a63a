# SPDX-License-Identifier: Apache-2.0
"""The shell around the decisions: events in, plans carried out, measurements taken.

It decides nothing itself.

    informer (kopf, lists) ─┐
    gateways (polled)       ├→ intake: store, queue → reconciler: observe → plan → client
    meter (scrapes, probe) ─┘
"""
