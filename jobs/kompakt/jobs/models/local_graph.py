# SPDX-License-Identifier: Apache-2.0
"""Local attention as operators of ONNX, the same that `local` computes in torch. No torch here.

There is one graph for all lengths. A batch that is no wider than the window is one block that looks
at all; the first token's own row, which is then among the others, has no numbers. Heads come apart
by looking their rows up, where full attention transposes: with the right indices that also lays
out the blocks, and no number is copied once more for it. The indices are computed once for all
layers. (An operator `If` for each layer takes longer than that, above all in OpenVINO.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "kompakt"
OPERATOR = "LocalAttention"
"""What an exported graph has in place of it, until it is written out."""
BLOCKS = 2
"""In a window; the rest of it is half before and half behind the block of queries."""


def write_out(path: Path) -> None:
    """Puts operators that runtimes know in place of each local attention in a file."""
    model = onnx.load(str(path))
    if all(node.domain != DOMAIN for node in model.graph.node):
        return
    nodes: list[onnx.NodeProto] = []
    blocks: dict[tuple[str, int], _Blocks] = {}
    rows: dict[tuple[str, int, int], _Rows] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        sizes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        inputs = _Inputs(*node.input, **sizes)
        key = (inputs.mask, inputs.window)
        if key not in blocks:
            make = _Operators(f"/attention_scope_{len(blocks)}")
            blocks[key] = _blocks(make, inputs.mask, inputs.window)
            nodes += make.nodes
        if (*key, inputs.heads) not in rows:
            make = _Operators(f"/attention_rows_{len(rows)}")
            rows[*key, inputs.heads] = _rows(make, blocks[key], inputs.heads)
            nodes += make.nodes
        make = _Operators(f"{node.name}/scope")
        _attend(make, inputs, blocks[key], rows[*key, inputs.heads])
        make.nodes[-1].output[0] = node.output[0]
        nodes += make.nodes
    copy = onnx.GraphProto()
    copy.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(copy.node)
    opsets = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.save(model, str(path))


@dataclass(frozen=True)
class _Inputs:
    """Of one local attention: names of values, and sizes."""

    query: str
    key: str
    value: str
    mask: str
    heads: int
    width: int
    window: int


@dataclass
class _Operators:
    """In the making; their names begin alike, and no other's do."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, **settings: Any) -> str:
        """Another operator; returns its output's name."""
        name = f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **settings))
        return name

    def constant(self, *values: int) -> str:
        """Of [values]."""
        value = numpy_helper.from_array(np.array(values, dtype=np.int64))
        return self.add("Constant", value=value)

    def number(self, value: float) -> str:
        """A constant without axes."""
        return self.add("Constant", value=numpy_helper.from_array(np.array(value, np.float32)))

    def size(self, value: str, axis: int) -> str:
        """Along an axis of a value: [1]."""
        return self.add("Shape", value, start=axis, end=axis + 1)

    def shape(self, *parts: str | int) -> str:
        """One list of several parts."""
        lists = [self.constant(part) if isinstance(part, int) else part for part in parts]
        return self.add("Concat", *lists, axis=0)

    def up_to(self, end: str) -> str:
        """The numbers from 0 on, up to one of [1]."""
        zero, one, last = (
            self.add("Squeeze", x) for x in (self.constant(0), self.constant(1), end)
        )
        return self.add("Range", zero, last, one)

    def outer(self, value: str, *axes: int) -> str:
        """With more axes of size 1."""
        return self.add("Unsqueeze", value, self.constant(*axes))

    def first(self, value: str, end: str, axis: int) -> str:
        """So many along an axis."""
        return self.add("Slice", value, self.constant(0), end, self.constant(axis))

    def attention(self, query: str, key: str, value: str, mask: str, scale: float) -> str:
        """Of [rows, heads, queries, width] to [rows, heads, keys, width]."""
        keys = self.add("Transpose", key, perm=[0, 1, 3, 2])
        # Scaled behind the product: so both kinds of queries are rows of the same numbers, and NNCF
        # finds one range for both. Of none, which some texts have of one kind, it would find 0.
        scores = self.add("Mul", self.add("MatMul", query, keys), self.number(scale))
        weights = self.add("Softmax", self.add("Add", scores, mask), axis=-1)
        return self.add("MatMul", weights, value)


@dataclass(frozen=True)
class _Blocks:
    """What follows from a batch's lengths: names of values."""

    text: str
    """Of each text, where its tokens begin among all: [texts, 1, 1]."""
    tokens: str
    """Width of the batch, [1]."""
    block: str
    """Queries of a block, [1]."""
    window: str
    """Keys of a block, [1]."""
    count: str
    """Blocks of a text, [1]."""
    keys: str
    """Each block's keys among all tokens, [texts, blocks, window]."""
    mask: str
    """Of these, [texts * blocks, 1, 1, window]."""
    alone: str
    """Tokens whose row is computed on its own, [1]: 1, or 0 where there is but one block."""
    seen: str
    """What that token looks at, [1]: all tokens, or 0."""
    seen_mask: str
    """Of these, [texts, 1, 1, seen]."""


@dataclass(frozen=True)
class _Rows:
    """Where the heads' rows stand, of values seen as [texts * tokens * heads, width]."""

    query: str
    """[texts * blocks, heads, block]"""
    key: str
    """[texts * blocks, heads, window]"""
    mixed: str
    """Among those that the blocks give, [texts, tokens without the first, heads]."""
    first_query: str
    """[texts, heads, alone]"""
    first_key: str
    """[texts, heads, seen]"""


def _blocks(make: _Operators, mask: str, longest: int) -> _Blocks:
    none, one = make.constant(0), make.constant(1)
    texts, tokens = make.size(mask, 0), make.size(mask, 3)
    is_long = make.add("Greater", tokens, make.constant(longest))
    window = make.add("Min", tokens, make.constant(longest))
    block = make.add("Where", is_long, make.constant(longest // BLOCKS), tokens)
    filled = make.add("Sub", make.add("Add", tokens, block), one)
    count = make.add("Div", filled, block)
    read = make.add("Cast", make.add("Equal", mask, make.number(0)), to=TensorProto.INT64)
    lengths = make.add("ReduceSum", read, make.constant(1, 2, 3), keepdims=0)
    last = make.add("Max", make.add("Sub", lengths, window), none)
    before = make.constant((longest - longest // BLOCKS) // 2)
    begins = make.add("Mul", make.up_to(count), block)
    wished = make.add("Max", make.add("Sub", begins, before), none)
    start = make.outer(make.add("Min", wished, make.outer(last, 1)), 2)
    place = make.up_to(window)
    # The window's first place is the first token's, wherever the window begins.
    moved = make.add("Mul", start, make.add("Min", place, one))
    text = make.outer(make.add("Mul", make.up_to(texts), tokens), 1, 2)
    keys = make.add("Add", make.add("Add", moved, place), text)
    near = make.add("Gather", make.add("Reshape", mask, make.constant(-1)), keys)
    alone = make.add("Cast", is_long, to=TensorProto.INT64)
    seen = make.add("Mul", tokens, alone)
    return _Blocks(
        text=text,
        tokens=tokens,
        block=block,
        window=window,
        count=count,
        keys=keys,
        mask=make.add("Reshape", near, make.shape(-1, 1, 1, window)),
        alone=alone,
        seen=seen,
        seen_mask=make.first(mask, seen, 3),
    )


def _rows(make: _Operators, plan: _Blocks, heads: int) -> _Rows:
    by = make.constant(heads)
    head = make.constant(*range(heads))

    def of_heads(tokens: str, *, axes: tuple[int, ...]) -> str:
        """Each head's row of some tokens."""
        return make.add("Add", make.add("Mul", tokens, by), make.outer(head, *axes))

    asking = make.up_to(make.add("Mul", plan.count, plan.block))
    # What fills the last block up is one token more often than once.
    asking = make.add("Min", asking, make.add("Sub", plan.tokens, make.constant(1)))
    asking = make.add("Reshape", asking, make.shape(-1, plan.block))
    query = of_heads(make.outer(make.add("Add", asking, plan.text), 2), axes=(1,))
    key = of_heads(make.outer(plan.keys, 2), axes=(1,))
    everyone = make.up_to(plan.tokens)
    token = make.add("Slice", everyone, plan.alone, plan.tokens, make.constant(0))
    # Blocks are in the order of their texts, and so are their heads and tokens.
    in_text = make.add("Div", token, plan.block)
    in_block = make.outer(make.add("Mod", token, plan.block), 1)
    blocks = make.add("Mul", make.add("Div", plan.text, plan.tokens), plan.count)
    block = make.outer(make.add("Add", blocks, in_text), 3)
    block = make.add("Reshape", block, make.shape(0, -1, 1))
    mixed = make.add("Mul", of_heads(block, axes=()), plan.block)
    seen = make.add("Add", plan.text, make.first(everyone, plan.seen, 0))
    return _Rows(
        query=make.add("Reshape", query, make.shape(-1, heads, plan.block)),
        key=make.add("Reshape", key, make.shape(-1, heads, plan.window)),
        mixed=make.add("Add", mixed, in_block),
        first_query=make.first(of_heads(plan.text, axes=(1,)), plan.alone, 2),
        first_key=of_heads(seen, axes=(1,)),
    )


def _attend(make: _Operators, inputs: _Inputs, plan: _Blocks, rows: _Rows) -> None:
    scale, size = inputs.width**-0.5, inputs.heads * inputs.width
    view = make.constant(-1, inputs.width)
    query, key, value = (
        make.add("Reshape", x, view) for x in (inputs.query, inputs.key, inputs.value)
    )
    near = make.attention(
        make.add("Gather", query, rows.query),
        make.add("Gather", key, rows.key),
        make.add("Gather", value, rows.key),
        plan.mask,
        scale,
    )
    near = make.add("Gather", make.add("Reshape", near, view), rows.mixed)
    first = make.attention(
        make.add("Gather", query, rows.first_query),
        make.add("Gather", key, rows.first_key),
        make.add("Gather", value, rows.first_key),
        plan.seen_mask,
        scale,
    )
    first = make.add("Transpose", first, perm=[0, 2, 1, 3])
    both = make.add("Concat", first, near, axis=1)
    make.add("Reshape", both, make.constant(0, -1, size))
