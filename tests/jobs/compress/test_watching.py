# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kompakt.jobs.compress.low_rank import Place, observe

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


def test_only_tokens_are_seen(bench_of: Benches) -> None:
    """Whatever else goes through a matrix, such as a table of relative positions, is none."""
    bench = bench_of("bert")
    batches = list(bench.data.batches(list(range(12)), 4))
    layer = bench.encoder.encoder_layers()[1]
    plain = observe(bench.encoder, batches, labels=bench.data.labels)
    handle = layer.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] + 0 * layer.query(torch.ones(9, 64)).sum(), inputs[1])
    )
    found = observe(bench.encoder, batches, labels=bench.data.labels)
    handle.remove()
    tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    for place in (Place(1, "query"), Place(1, "key")):
        assert found[place].count == plain[place].count == tokens
        assert found[place].gradient == pytest.approx(plain[place].gradient, rel=1e-4)
        assert torch.allclose(found[place].inputs, plain[place].inputs)
