# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.load import load


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_logits_equal_those_of_transformers(
    model_type: str, checkpoint_of: Callable[[str], Path]
) -> None:
    """The encoder computes what the reference implementation does, padded or not."""
    from transformers import AutoModelForSequenceClassification

    folder = checkpoint_of(model_type)
    reference, info = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"], "a weight is called otherwise than transformers calls it"
    checkpoint = inspect(folder, origin="test")
    ours = load(checkpoint)
    pad = checkpoint.config["pad_token_id"]
    generator = torch.Generator().manual_seed(0)
    for width, padding in ((5, 0), (12, 0), (12, 4), (40, 30)):
        ids = torch.randint(4, 30, (3, width), generator=generator)
        mask = torch.ones_like(ids)
        if padding:
            ids[1, -padding:] = pad
            mask[1, -padding:] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        if checkpoint.architecture.token_type_ids:
            inputs["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
        with torch.no_grad():
            expected = reference.eval()(**inputs).logits
            found = ours(**inputs)
        assert expected.std() > 0.1, "answers that are all alike would prove nothing"
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
