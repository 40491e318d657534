"""Rules of ops on images: convolutions, pooling, batch normalization, resizing."""

from __future__ import annotations

from collections.abc import Sequence

from model_server.rows.row_nodes import Mixes, Node, Outputs, by_op
from model_server.rows.row_values import CONSTANT, Size, Value, aligned, unknown

_IMAGES = 4


def _convolved(node: Node) -> Value:
    """Conv2D and the like: images along the first dimension, constant filters."""
    value, filters = node.aligned(0, _IMAGES), node.constant(1).shape
    if filters is None or len(filters) != _IMAGES:
        raise Mixes
    depth = filters[3] if node.op == "Conv2D" else filters[2].times(filters[3])
    return _windows(node, value, filters[:2], depth)


def _pooled(node: Node) -> Value:
    value, sides = node.aligned(0, _IMAGES), node.integers("ksize")
    channels_first = node.text("data_format", "NHWC") == "NCHW"
    at = 2 if channels_first else 1
    if len(sides) != _IMAGES or sides[0] != 1 or sides[1 if channels_first else 3] != 1:
        raise Mixes
    depth = (value.shape or ())[1 if channels_first else 3]
    return _windows(node, value, [Size(each) for each in sides[at : at + 2]], depth)


def _windows(node: Node, value: Value, sides: Sequence[Size], depth: Size) -> Value:
    layout = node.text("data_format", "NHWC")
    if layout not in ("NHWC", "NCHW"):
        raise Mixes
    at = 1 if layout == "NHWC" else 2
    strides = node.integers("strides")
    dilations = node.integers("dilations") or [1] * _IMAGES
    if strides[0] != 1 or dilations[0] != 1:
        raise Mixes
    spatial = []
    for place in (0, 1):
        size, side, stride = (value.shape or ())[at + place], sides[place], strides[at + place]
        reach = (side.number - 1) * dilations[at + place] + 1
        padding = node.text("padding", "")
        if size.symbols or side.symbols or padding not in ("SAME", "VALID"):
            spatial.append(unknown(f"{node.name}:{place}"))
        else:
            places = size.number if padding == "SAME" else size.number - reach + 1
            spatial.append(Size(-(-places // stride)))
    return aligned(value.lead, [*spatial, depth] if at == 1 else [depth, *spatial])


def _batch_norm(node: Node) -> Outputs:
    """FusedBatchNorm with given statistics; in training mode they are the batch's."""
    value = node.aligned(0, _IMAGES)
    is_training = node.switch("is_training") if "is_training" in node.attributes else True
    if is_training:
        raise Mixes
    for index in range(1, 5):
        node.constant(index)
    return [value, *[Value(CONSTANT)] * 5]


def _resized(node: Node) -> Value:
    value, target = node.aligned(0, _IMAGES), node.sizes(1)
    if not all(size.is_fixed for size in target):
        raise Mixes
    return aligned(value.lead, [*target, value.inner[2]])


RULES = by_op(
    ("MaxPool AvgPool", _pooled),
    ("Conv2D DepthwiseConv2dNative", _convolved),
    ("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3", _batch_norm),
    ("ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea", _resized),
)
