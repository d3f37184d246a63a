# SPDX-License-Identifier: Apache-2.0
"""The parameters of each technique, a model for each: what a recipe's step says, and what the Jobs
read.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kompakt.api.base import Cel, ListType, Model

Term = Annotated[str, Field(min_length=1, max_length=128)]


class TrimVocabulary(Model):
    """Tokens that the task's texts hardly use leave the tokenizer and the embedding table.

    Special tokens and single characters always stay, so that no text becomes unknown: it is split
    into smaller tokens instead. For WordPiece, BPE and Unigram tokenizers.
    """

    least_occurrences: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """How often a token must occur in the training texts to stay. With 0, those that never occur
    fill up what keepPermille leaves room for, in the order of their ids: tokenizers number the
    frequent ones first."""
    keep_permille: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Share of all tokens that stays at most, the most frequent ones first. What must stay does so
    beyond it."""
    protected_terms: Annotated[list[Term], Field(max_length=256), ListType("atomic")] = []
    """Words that are split as before, whether the training texts have them or not."""


class Prune(Model):
    """Structured pruning with physical shrink: the pruned rows and columns leave the matrices.

    Whole layers go first, those that the answers miss least. Then attention heads and FFN neurons
    are ranked, over all layers at once, so that layers keep what they need. All shares are of the
    model as the step finds it: a recipe may prune a little, distill, and prune on.
    """

    importance: Literal["Fisher", "Movement", "L0"] = "Fisher"
    """How heads and neurons are ranked. Fisher: by the squared gradient of the loss by a gate on
    each (Kwon et al. 2022, arXiv:2204.09656, section 4). Movement: by where a few steps of training
    move their weights (Sanh et al. 2020, arXiv:2005.07683). L0: by gates that begin in the order of
    Fisher and learn, with the weights, to close while the model is distilled (Louizos et al. 2018,
    arXiv:1712.01312; Xia et al. 2022, arXiv:2204.00408). It takes as long as a distill step."""
    sparsity_examples: Annotated[int, Field(ge=32, le=10_000_000)] = 3000
    """L0: how many training texts are shown in all (repeated when the data has fewer)."""
    ffn_keep_permille: Annotated[int, Field(ge=20, le=1000)] = 1000
    """Share of all FFN neurons that stay."""
    head_keep_permille: Annotated[int, Field(ge=20, le=1000)] = 1000
    """Share of all attention heads that stay; each layer keeps at least one."""
    drop_layers: Annotated[int, Field(ge=0, le=64)] = 0
    """How many whole layers go."""
    latency_keep_permille: Annotated[int, Field(ge=20, le=1000)] | None = None
    """Share of the layers' latency that stays, instead of shares of heads and neurons: how many of
    which layer follows from the damage that was measured and from a table of latencies, measured
    on the Job's pod and kept in the store (Kurtic et al. 2023, arXiv:2302.04089).
    A layer may lose all its heads or neurons."""
    latency_precision: Literal["Int8", "Fp32", "OpenVinoInt8"] = "Int8"
    """What computes the layers in that table, as the recipe's last steps leave them: ONNX Runtime
    in 8 or 32 bits, or OpenVINO in 8."""
    latency_tokens: Annotated[int, Field(ge=8, le=8192)] | None = None
    """The length, in tokens, of the texts whose latency counts; those of the training data when
    absent. Attention grows with the square of it: for a service that reads longer texts than these,
    fewer heads stay, and more neurons."""
    samples: Annotated[int, Field(ge=16, le=65_536)] = 256
    """Training examples that the importance is estimated from; a text's label is used where it has
    one, the model's own prediction otherwise. What is left is fitted on eight times as many."""
    min_agreement_basis_points: Annotated[int, Field(ge=5000, le=10_000)] | None = None
    """A gate behind this stage, which is the step and the distill steps that follow it: share of
    held-out texts that must get the original's answer, or near it. 100 to 512 training texts, at
    most a quarter, are held out, and no step sees them. A stage that breaks its gate is undone, and
    no stage follows it; lowRank, attentionScope, and a distill step with quantizationAware, still
    do."""
    max_drop_basis_points: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """A gate of the same kind, of a TextClassification: by how much the accuracy on those held-out
    texts that have a label, of which there must be 50, may be below the original's."""


class LowRank(Model):
    """Matrices of the layers as products of two thinner ones, by the singular values of what they
    give on the training texts (Wang et al. 2024, arXiv:2403.07378, section 3.1).

    Ranks follow from one budget for all matrices: each gets what the loss needs, and is left whole
    where two factors would be no smaller. Comes after prune.
    """

    keep_permille: Annotated[int, Field(ge=50, le=999)] = 700
    """Share of the numbers in the layers' matrices that stays at most."""
    samples: Annotated[int, Field(ge=16, le=65_536)] = 256
    """Training texts that the matrices' inputs are seen on."""


class AttentionScope(Model):
    """Layers in which a token looks at those around it and at the first one, rather than at all;
    the first still looks at all (Longformer, Beltagy et al. 2020, arXiv:2004.05150, section 3.1).

    Texts that are no longer than the window are read as before, so it is for inputs of hundreds of
    tokens. For models with absolute positions. Comes after prune.
    """

    window_tokens: Annotated[int, Field(ge=16, le=8192)] = 128
    """How many tokens one looks at, at most: the first of the text, and those around the block that
    it belongs to, which is half as long as the window."""
    min_agreement_basis_points: Annotated[int, Field(ge=5000, le=10_000)] = 9900
    """Share of training texts longer than the window that must get the same answer as with full
    attention, or one near it (of a TokenClassification, share of their tokens). As many layers are
    limited as it allows, those first whose limit moves answers least."""
    samples: Annotated[int, Field(ge=128, le=65_536)] = 256
    """Training texts longer than the window that it looks at, at most; a quarter of them for the
    layers' order, the others for the agreement. It needs 128."""


Weight = Annotated[int, Field(ge=0, le=100_000)]
Precision = Literal["Automatic", "Float32", "BFloat16"]


class Distill(Model):
    """Training of the smaller model towards the original, by a weighted sum of losses: its answers
    (Hinton et al. 2015, arXiv:1503.02531), its hidden states (Jiao et al. 2020, arXiv:1909.10351),
    how its tokens relate (Wang et al. 2021, arXiv:2012.15828), and the labels.

    Hidden states and relations are compared for the tokens that both have, in matching layers; the
    original then runs beside the smaller model, which takes a third longer.
    """

    logits_weight_permille: Weight = 1000
    """Weight of the divergence from the softened answers, in thousandths."""
    hidden_weight_permille: Weight = 0
    """Weight of the squared distance of hidden states, relative to their variance, in thousandths.
    """
    relation_weight_permille: Weight = 0
    """Weight of the divergence of the relations among queries, among keys and among values of the
    last layer with heads, in thousandths."""
    label_weight_permille: Weight = 0
    """Weight of the cross entropy with the labels of the texts that have one, in thousandths."""
    temperature_permille: Annotated[int, Field(ge=500, le=20_000)] = 2000
    """Softening of the logits, in thousandths."""
    examples: Annotated[int, Field(ge=32, le=10_000_000)] = 6000
    """How many training texts are shown in all (repeated when the data has fewer)."""
    crossover: Literal["Enabled", "Disabled"] = "Disabled"
    """After one pass over the texts, show new ones instead of the same again: the beginning of one
    text and the end of another, which the original answers as any other (instance crossover, Luque
    2019, arXiv:1909.11241)."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Texts in a training step, on average: all steps have about as many tokens."""
    learning_rate_micros: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Peak learning rate of AdamW in millionths; linear warm-up and decay."""
    precision: Precision = "Automatic"
    """Of matrix products in training: the faster one on the Job's CPU or GPU, unless it is set.
    Weights and the model that results are 32 bits wide either way."""
    quantization_aware: Literal["Enabled", "Disabled"] = "Disabled"
    """The model trains with the rounded weights and inputs of matrices that the recipe's quantize
    step, which must come next, will give it (Jacob et al. 2018, arXiv:1712.05877, section 3): by
    DynamicInt8, StaticInt8 or WeightOnly. There, weights of 2 bits become -1, 0 and 1 (Li et al.
    2016, arXiv:1605.04711), of 1 bit -1 and 1 (Bai et al. 2021, arXiv:2012.15701), times a scale.
    """

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.logitsWeightPermille + self.hiddenWeightPermille + self.relationWeightPermille"
            " + self.labelWeightPermille > 0",
            "at least one of the weights must be above 0",
        ),
    )


class Quantize(Model):
    """Post-training quantization of the exported graph."""

    method: Literal[
        "DynamicInt8", "StaticInt8", "OpenVinoInt8", "BFloat16", "Float16", "WeightOnly"
    ] = "DynamicInt8"
    """DynamicInt8: 8-bit weights, activations quantized as they come, in ONNX Runtime; needs no
    texts.
    StaticInt8: 8-bit weights and activations, their ranges taken from texts, in ONNX Runtime.
    OpenVinoInt8: 8-bit weights and activations, their ranges taken from texts, in OpenVINO.
    BFloat16: 16 bits, in OpenVINO, on CPUs that compute in bfloat16 (AVX512-BF16, AMX); needs no
    texts.
    Float16: 16 bits, in ONNX Runtime, for GPUs; on CPUs it halves the size alone. Needs no texts.
    WeightOnly: weights in 8, 4, 2 or 1 bits, packed, each block of them with a scale, in ONNX
    Runtime, for the smallest file; needs no texts."""
    per_channel: Literal["Enabled", "Disabled"] = "Enabled"
    """Int8: one scale for each output channel of a weight, rather than one for the whole
    matrix."""
    reduce_range: Literal["Enabled", "Disabled"] = "Disabled"
    """Int8: 7-bit weights, for CPUs without VNNI, where 8-bit products saturate."""
    samples: Annotated[int, Field(ge=16, le=4096)] = 128
    """StaticInt8, OpenVinoInt8: calibration texts (training texts, where there are none) that
    ranges are taken from."""
    calibration: Literal["MinMax", "Percentile", "Entropy"] = "MinMax"
    """StaticInt8: what range the integers of a tensor get. MinMax: all values seen. Percentile: all
    but a share of them. Entropy: what loses least information (Kullback-Leibler divergence)."""
    clipped_per_million: Annotated[int, Field(ge=1, le=100_000)] = 10
    """StaticInt8 by Percentile: the share of values that are clipped, both ends together."""
    smooth_quant_alpha_permille: Annotated[int, Field(ge=0, le=1000)] = 950
    """StaticInt8, OpenVinoInt8: how much of the activations' outliers goes into the weights before
    both are quantized, the α of SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) in thousandths;
    0 leaves them where they are."""
    mixed: Literal["Enabled", "Disabled"] = "Disabled"
    """StaticInt8, OpenVinoInt8: products whose quantization hurts most stay in floating point, as
    many as the agreement below needs and no more."""
    min_agreement_basis_points: Annotated[int, Field(ge=5000, le=10_000)] = 9900
    """With mixed: share of calibration texts, others than those that choices are made on, which
    must get the original's answer, as in prune. From 100 texts up to 512; the more, the finer."""
    weight_bits: Literal[1, 2, 4, 8] = 4
    """WeightOnly: bits of a weight. Below 4 only weights that were trained for it are of use: 2
    bits are -1, 0 and 1 then, 1 bit is -1 and 1. ONNX Runtime unpacks 1 bit when it opens the file,
    so that only the file is small."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """WeightOnly: how many weights share a scale of 32 bits."""
    table_bits: Literal[4, 8] = 8
    """WeightOnly, OpenVinoInt8: bits of a number in the table of token embeddings, which is half of
    a small model. 4 bits have a scale for each block of numbers."""
    activation_aware_alpha_permille: Annotated[int, Field(ge=0, le=1000)] = 0
    """WeightOnly of 2 bits or more: how much weights that meet large activations are spared by
    rounding, the α of AWQ (Lin et al. 2023, arXiv:2306.00978, section 3.2) in thousandths. Above 0
    it looks at as many texts as samples says."""
    zero_points: Literal["Enabled", "Disabled"] = "Disabled"
    """WeightOnly of 2 bits or more: blocks have a zero point beside the scale."""
    activations: Literal["Int8", "Float32"] = "Int8"
    """WeightOnly of 2 bits or more: what ONNX Runtime may round to, in blocks, what is multiplied
    with the weights. Int8 is faster on CPUs with VNNI, and below 4 bits on all."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.mixed == 'Disabled' || self.method in ['StaticInt8', 'OpenVinoInt8']",
            "mixed is for StaticInt8 and OpenVinoInt8, which choose per product by texts: set the"
            " method to one of them, or leave mixed out",
            ".mixed",
        ),
        Cel(
            "self.method == 'WeightOnly' || (self.weightBits == 4 && self.blockSize == 32"
            " && self.activations == 'Int8')",
            "weightBits, blockSize and activations are for the method WeightOnly: set the method to"
            " it, or leave them out",
            ".method",
        ),
        Cel(
            "self.tableBits == 8 || self.method in ['WeightOnly', 'OpenVinoInt8']",
            "tableBits are for the methods WeightOnly and OpenVinoInt8: set the method to one of"
            " them, or leave tableBits out",
            ".tableBits",
        ),
        Cel(
            "self.activationAwareAlphaPermille == 0"
            " || (self.method == 'WeightOnly' && self.weightBits > 1)",
            "activationAwareAlphaPermille is for the method WeightOnly with 2 bits or more: leave"
            " it out",
            ".activationAwareAlphaPermille",
        ),
        Cel(
            "self.zeroPoints == 'Disabled' || (self.method == 'WeightOnly' && self.weightBits > 1)",
            "zeroPoints are for the method WeightOnly with 2 bits or more: leave them out",
            ".zeroPoints",
        ),
    )


class Calibrate(Model):
    """Temperature scaling (Guo et al. 2017, arXiv:1706.04599): the scores are made to say how often
    a label is right. No label changes.
    """

    examples: Annotated[int, Field(ge=50, le=100_000)] = 1000
    """Labelled texts that it looks at, at most: of data.calibration where that has a labelField,
    else of data.training, and then none of the other steps sees them. Texts that the original was
    trained on make every model look surer than it may be."""
