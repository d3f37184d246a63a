# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from kompakt.jobs.compress.objectives import (
    Hidden,
    Labels,
    Logits,
    NumberLabels,
    Numbers,
    Relations,
    Sample,
    TokenLogits,
    relation_heads,
)
from kompakt.jobs.compress.states import Alignment, States

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
"""Two texts, of five and of three tokens."""


def states(*, seed: int, layers: Sequence[int] = (), attention: int = 0, width: int = 5) -> States:
    """Random ones."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return States(
        logits=random(2, 3),
        hidden={layer: random(2, width, 6) for layer in layers},
        attention=tuple(random(2, width, attention) for _ in range(3)) if attention else (),
    )


def sample_of(teacher: States, alignment: Alignment | None = None) -> Sample:
    """Both models have the same tokens, unless it is said otherwise."""
    return Sample([0, 1], teacher, alignment or Alignment.same(MASK))


def test_the_divergence_of_answers_is_that_of_scipy() -> None:
    """Mean over texts, at the temperature, times its square."""
    student, teacher = states(seed=0), states(seed=1)
    found = Logits(3.0).loss(student, sample_of(teacher))
    p, q = (softmax(s.logits.numpy().astype(float) / 3, axis=1) for s in (teacher, student))
    assert float(found) == pytest.approx(
        9 * np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)]), rel=1e-5
    )
    average = p.mean(axis=0)
    expected = 9 * np.mean([entropy(row, average) for row in p])
    assert Logits(3.0).uninformed([sample_of(teacher)]) == pytest.approx(expected, rel=1e-3)


def test_hidden_states_are_compared_relative_to_their_variance() -> None:
    """Over real tokens only, layer by layer with the one that it is matched with."""
    teacher, student = states(seed=1, layers=[1, 3]), states(seed=0, layers=[0, 1])
    sample = sample_of(teacher)
    objective = Hidden([1, 3], [sample], first_at_last=False)
    tokens = MASK.numpy().astype(bool)
    expected = []
    for ours, theirs in ((0, 1), (1, 3)):
        t = teacher.hidden[theirs].numpy()[tokens]
        difference = student.hidden[ours].numpy()[tokens] - t
        expected.append((difference**2).mean() / ((t - t.mean(axis=0)) ** 2).mean())
    assert float(objective.loss(student, sample)) == pytest.approx(np.mean(expected), rel=1e-5)

    for padded in (teacher, student):
        for layer in padded.hidden.values():
            layer[1, 3:] = 1e6
    again = Hidden([1, 3], [sample], first_at_last=False)
    assert float(again.loss(student, sample)) == pytest.approx(np.mean(expected), rel=1e-5)

    t = teacher.hidden[1][MASK.bool()]
    average = States(logits=student.logits, hidden={0: t.mean(dim=0).expand(2, 5, 6)})
    one_layer = Hidden([1], [sample], first_at_last=False)
    assert float(one_layer.loss(average, sample)) == pytest.approx(
        one_layer.uninformed([sample]), rel=1e-5
    )


def test_a_classifier_s_last_states_are_compared_where_they_are_read() -> None:
    """At the first token alone, relative to the variance of first tokens; those of other layers
    everywhere.
    """
    teacher, student = states(seed=1, layers=[1, 3]), states(seed=0, layers=[0, 1])
    sample = sample_of(teacher)
    objective = Hidden([1, 3], [sample], first_at_last=True)
    inner = Hidden([1], [sample], first_at_last=False)
    t, s = teacher.hidden[3][:, 0].numpy(), student.hidden[1][:, 0].numpy()
    last = ((s - t) ** 2).mean() / ((t - t.mean(axis=0)) ** 2).mean()
    expected = (float(inner.loss(student, sample)) + last) / 2
    assert float(objective.loss(student, sample)) == pytest.approx(expected, rel=1e-5)
    student.hidden[1][:, 1:] = 1e6
    assert float(objective.loss(student, sample)) == pytest.approx(expected, rel=1e-5)


def test_relations_are_those_of_the_paper() -> None:
    """Written out with loops: per relation head and query token, softmax over real tokens."""
    teacher, student = states(seed=1, attention=12), states(seed=0, attention=8)
    sample = sample_of(teacher)
    heads = relation_heads(8, 12, most=12)
    assert heads == 4
    total, count = 0.0, 0
    for ours, theirs in zip(student.attention, teacher.attention, strict=True):
        for text, length in enumerate((5, 3)):
            for head in range(heads):
                s = ours[text, :length, head * 2 : head * 2 + 2].numpy().astype(float)
                t = theirs[text, :length, head * 3 : head * 3 + 3].numpy().astype(float)
                found = log_softmax(s @ s.T / math.sqrt(2), axis=1)
                expected = log_softmax(t @ t.T / math.sqrt(3), axis=1)
                total += (np.exp(expected) * (expected - found)).sum()
                count += length
    objective = Relations(heads)
    assert float(objective.loss(student, sample)) == pytest.approx(total / count, rel=1e-4)
    nothing = States(logits=student.logits, attention=tuple(torch.zeros(2, 5, 8) for _ in range(3)))
    assert objective.uninformed([sample]) == pytest.approx(
        float(objective.loss(nothing, sample)), rel=1e-5
    )
    same = States(logits=student.logits, attention=teacher.attention)
    assert float(objective.loss(same, sample)) == pytest.approx(0.0, abs=1e-6)


def test_gradients_of_padding_are_numbers() -> None:
    """Masked places get none, and nothing overflows."""
    teacher, student = (
        states(seed=1, layers=[0], attention=4),
        states(seed=0, layers=[0], attention=4),
    )
    for part in (*student.attention, student.hidden[0]):
        part.requires_grad_()
    sample = sample_of(teacher)
    hidden = Hidden([0], [sample], first_at_last=False)
    (Relations(2).loss(student, sample) + hidden.loss(student, sample)).backward()
    for part in (*student.attention, student.hidden[0]):
        assert part.grad is not None
        assert torch.isfinite(part.grad).all()
        assert not part.grad[1, 3:].any()
        assert part.grad[1, :3].any()


def test_only_common_tokens_are_compared() -> None:
    """An alignment picks the same places out of both models, whatever else there is."""
    teacher, student = (
        states(seed=1, layers=[0], attention=4, width=4),
        states(seed=0, layers=[0], attention=4, width=5),
    )
    alignment = Alignment(
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        student=torch.tensor([[0, 3, 4], [0, 2, 0]]),
        teacher=torch.tensor([[0, 2, 3], [0, 1, 0]]),
    )
    sample = sample_of(teacher, alignment)
    ours = torch.cat([student.hidden[0][0, [0, 3, 4]], student.hidden[0][1, [0, 2]]])
    theirs = torch.cat([teacher.hidden[0][0, [0, 2, 3]], teacher.hidden[0][1, [0, 1]]])
    variance = (theirs - theirs.mean(dim=0)).square().mean()
    expected = (ours - theirs).square().mean() / variance
    objective = Hidden([0], [sample], first_at_last=False)
    torch.testing.assert_close(objective.loss(student, sample), expected)

    def picked(source: States, places: Sequence[Sequence[int]]) -> States:
        rows = [[*p, *[0] * (3 - len(p))] for p in places]
        parts = [torch.stack([part[r, rows[r]] for r in range(2)]) for part in source.attention]
        return States(logits=source.logits, attention=tuple(parts))

    short = Alignment.same(alignment.mask)
    relations = Relations(2)
    torch.testing.assert_close(
        relations.loss(student, sample),
        relations.loss(
            picked(student, [[0, 3, 4], [0, 2]]),
            sample_of(picked(teacher, [[0, 2, 3], [0, 1]]), short),
        ),
    )


def test_labels_count_where_there_are_some() -> None:
    """Cross entropy of the labelled texts, over all texts of the batch."""
    student = states(seed=0)
    sample = sample_of(states(seed=1))
    objective = Labels([2, None])
    expected = -log_softmax(student.logits.numpy()[0])[2] / 2
    assert float(objective.loss(student, sample)) == pytest.approx(expected, rel=1e-5)
    assert float(Labels([None, None]).loss(student, sample)) == 0.0
    samples = [Sample([0, 1, 2, 3], sample.teacher, sample.alignment)]
    known = Labels([0, 0, 2, None]).uninformed(samples)
    assert known == pytest.approx(entropy([2 / 3, 1 / 3]) * 3 / 4)
    assert Labels([None] * 4).uninformed(samples) == 0.0


@pytest.mark.parametrize(
    ("student", "teacher", "most", "expected"),
    [(384, 384, 12, 12), (64, 384, 12, 8), (224, 384, 12, 8), (32, 384, 12, 8), (96, 64, 4, 4)],
)
def test_relation_heads_divide_both(student: int, teacher: int, most: int, expected: int) -> None:
    """As many as fit, and no more than the teacher has attention heads."""
    assert relation_heads(student, teacher, most=most) == expected


def test_answers_to_tokens_are_compared_where_both_have_them() -> None:
    """Mean over the tokens of the alignment, whatever stands at the others."""
    generator = torch.Generator().manual_seed(0)
    student = States(logits=torch.randn(2, 5, 3, generator=generator))
    teacher = States(logits=torch.randn(2, 3, 3, generator=generator))
    teacher.logits[1, 2] = -math.inf  # a word that the teacher does not read
    places = torch.tensor([[1, 2, 4], [1, 3, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    sample = sample_of(teacher, Alignment(mask=mask, student=places))
    pairs = [(0, 0, 1), (0, 1, 2), (0, 2, 4), (1, 0, 1), (1, 1, 3)]
    p = [softmax(teacher.logits[t, w].numpy().astype(float) / 2) for t, w, _ in pairs]
    q = [softmax(student.logits[t, s].numpy().astype(float) / 2) for t, _, s in pairs]
    expected = 4 * np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert float(TokenLogits(2.0).loss(student, sample)) == pytest.approx(expected, rel=1e-5)
    nothing = 4 * np.mean([entropy(a, np.mean(p, axis=0)) for a in p])
    assert TokenLogits(2.0).uninformed([sample]) == pytest.approx(nothing, rel=1e-5)
    empty = sample_of(teacher, Alignment(mask=torch.zeros_like(mask), student=places))
    assert float(TokenLogits(2.0).loss(student, empty)) == 0.0


def test_numbers_are_compared_relative_to_their_variance() -> None:
    """With the teacher's and with labels, of which some texts have none."""
    student = States(logits=torch.tensor([[1.0], [2.5]]))
    sample = sample_of(States(logits=torch.tensor([[0.0], [2.0]])))
    assert float(Numbers([sample]).loss(student, sample)) == pytest.approx((1 + 0.25) / 2 / 1.0)
    average = States(logits=torch.tensor([[1.0], [1.0]]))
    assert float(Numbers([sample]).loss(average, sample)) == Numbers([sample]).uninformed([sample])
    vectors = sample_of(States(logits=torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    turned = States(logits=torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    # 1 - cosine of 0.4 and 0, times 2 over two texts of two numbers with a variance of 1/4.
    assert float(Numbers([vectors]).loss(turned, vectors)) == pytest.approx(0.4 * 2 / 4 / 0.25)
    middle = States(logits=torch.full((2, 2), 0.5))
    assert float(Numbers([vectors]).loss(middle, vectors)) == pytest.approx(1.0)
    labels = NumberLabels([None, 2.0, 4.0])
    assert float(labels.loss(student, sample)) == pytest.approx(0.25 / 2)
    assert labels.uninformed([sample]) == 0.5
