"""Arguments that reach every rule of the translation table: by overload, the calls to capture."""

from __future__ import annotations

from typing import Any

import torch

Call = tuple[tuple[Any, ...], dict[str, Any]]


def _floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = _floats(2, 3, 4), _floats(2, 3, 4, seed=1)
POSITIVE = X.abs() + 0.1
SQUARE, MATRIX, VECTOR = _floats(2, 4, 4), _floats(3, 4), _floats(4)
INTEGERS = torch.tensor([[3, -7, 5], [0, 2, -1]])
DIVISORS = torch.tensor([[2, 3, -2], [1, -5, 4]])
BOOLS = X > 0
OTHER_BOOLS = Y > 0
INDEX = torch.tensor([[2, 0, 1], [1, 1, 0]])
ROWS = torch.tensor([2, 0])
IMAGE, KERNEL = _floats(2, 4, 9, 9), _floats(6, 2, 3, 3, seed=1)
SIGNAL, FILTER = _floats(2, 4, 9), _floats(6, 2, 3, seed=1)
BIAS = _floats(6, seed=2)
Q, K = _floats(2, 4, 5, 8), _floats(2, 2, 5, 8, seed=1)

# Torch does not say that sizes of these operators' operands are equal, or one of the sizes has to be 1.
STATIC = {
    "aten.expand_as.default",
    "aten.scaled_dot_product_attention.default",
    "aten.scatter.src",
    "aten.index_put.default",
    "aten.slice_scatter.default",
    "aten.select_scatter.default",
}


def call(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


def _each(names: str, *calls: Call) -> dict[str, list[Call]]:
    return {f"aten.{name}": list(calls) for name in names.split()}


CASES: dict[str, list[Call]] = {
    # --- elementwise
    **_each("add.Tensor sub.Tensor", call(X, Y), call(X, Y, alpha=2), call(INTEGERS, 1), call(INTEGERS, 0.5)),
    **_each("add.Scalar sub.Scalar rsub.Scalar", call(X, 2.5), call(X, 3, 2)),
    **_each("rsub.Tensor", call(X, Y, alpha=3)),
    **_each("mul.Tensor multiply.Tensor", call(X, Y), call(X, 2), call(X.bfloat16(), torch.tensor(3.0))),
    **_each("mul.Scalar div.Scalar", call(X, 2.5)),
    **_each("div.Tensor true_divide.Tensor divide.Tensor", call(X, POSITIVE), call(INTEGERS, DIVISORS)),
    **_each("div.Tensor_mode", call(X, POSITIVE, rounding_mode="floor"), call(X, POSITIVE, rounding_mode=None)),
    **_each("div.Scalar_mode", call(X, 0.3, rounding_mode="floor")),
    **_each("floor_divide.default", call(INTEGERS, DIVISORS), call(X, POSITIVE)),
    **_each("floor_divide.Scalar remainder.Scalar", call(INTEGERS, 3)),
    **_each("remainder.Tensor", call(INTEGERS, DIVISORS), call(X, POSITIVE)),
    **_each("maximum.default minimum.default max.other min.other", call(X, Y)),
    **_each("eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor", call(INTEGERS, DIVISORS), call(X, Y)),
    **_each("eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", call(INTEGERS, 2), call(X, 0.5)),
    **_each("__and__.Tensor __or__.Tensor __xor__.Tensor", call(BOOLS, OTHER_BOOLS)),
    **_each("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor", call(BOOLS, OTHER_BOOLS)),
    **_each("__and__.Scalar __or__.Scalar __xor__.Scalar", call(BOOLS, True)),
    **_each("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar", call(BOOLS, True)),
    **_each(
        "logical_and.default logical_or.default logical_xor.default", call(BOOLS, OTHER_BOOLS), call(INTEGERS, INDEX)
    ),
    **_each("logical_not.default", call(BOOLS), call(INTEGERS)),
    **_each("bitwise_not.default", call(BOOLS)),
    **_each(
        "neg.default abs.default exp.default sin.default cos.default tanh.default sigmoid.default erf.default", call(X)
    ),
    **_each("floor.default ceil.default sign.default relu.default relu6.default square.default exp2.default", call(X)),
    **_each("log.default sqrt.default rsqrt.default reciprocal.default", call(POSITIVE)),
    **_each("pow.Tensor_Scalar", call(X, 2), call(POSITIVE, 0.5)),
    **_each("pow.Tensor_Tensor", call(POSITIVE, X)),
    **_each("pow.Scalar", call(2.0, X)),
    **_each("softplus.default", call(X), call(X, 2)),
    **_each("where.self", call(BOOLS, X, Y), call(BOOLS, X, torch.tensor(0.5))),
    **_each("where.ScalarOther", call(BOOLS, X, -1.5)),
    **_each("where.ScalarSelf", call(BOOLS, 2.5, X)),
    **_each("where.Scalar", call(BOOLS, 1.0, 0.0)),
    **_each("masked_fill.Scalar", call(X, BOOLS, float("-inf")), call(INTEGERS, INTEGERS > 0, 9)),
    **_each("masked_fill.Tensor", call(X, BOOLS, torch.tensor(2.0))),
    **_each("clamp.default", call(X, -0.5, 0.5), call(X, None, 0.2), call(INTEGERS, -2, 3)),
    **_each("clamp.Tensor", call(X, Y, None), call(X, Y, Y.abs() + 1)),
    **_each("clamp_min.default clamp_max.default", call(X, 0.25)),
    **_each("clamp_min.Tensor clamp_max.Tensor", call(X, Y)),
    **_each("lerp.Scalar", call(X, Y, 0.3)),
    **_each("lerp.Tensor", call(X, Y, POSITIVE)),
    **_each("addcmul.default", call(X, Y, POSITIVE, value=0.5)),
    **_each("hardtanh.default", call(X, -0.3, 0.6)),
    **_each("leaky_relu.default", call(X, 0.1)),
    # --- activations
    **_each("silu.default mish.default hardsigmoid.default hardswish.default log_sigmoid.default", call(4 * X)),
    **_each("gelu.default", call(X), call(X, approximate="tanh")),
    **_each("glu.default", call(X, -1)),
    # --- reductions
    **_each("sum.dim_IntList", call(X, [1]), call(X, [-1, 0], True), call(BOOLS, [2]), call(X, None)),
    **_each("sum.default mean.default", call(X)),
    **_each("mean.dim", call(X, [-1], True), call(X.bfloat16(), [2], dtype=torch.float32)),
    **_each("amax.default amin.default", call(X, [1]), call(X, [], True)),
    **_each("max.default min.default", call(X)),
    **_each("max.dim min.dim", call(X, 1), call(X, -1, True)),
    **_each("argmax.default argmin.default", call(X), call(X, 1), call(X, -1, True)),
    **_each("any.dim all.dim", call(BOOLS, 1), call(INTEGERS, -1, True)),
    **_each("any.dims all.dims", call(BOOLS, [0, 2])),
    **_each("any.default all.default", call(BOOLS)),
    **_each("cumsum.default", call(X, 1), call(BOOLS, -1), call(INTEGERS, 0, dtype=torch.float32)),
    **_each("softmax.int log_softmax.int", call(X, -1), call(X.bfloat16(), 1, dtype=torch.float32)),
    **_each("_safe_softmax.default", call(X, -1)),
    **_each("_softmax.default _log_softmax.default", call(X, 1, False)),
    **_each("logsumexp.default", call(X, [1]), call(X, [0, -1], True)),
    **_each("topk.default", call(X, 2), call(X, 2, 1, False)),
    **_each("sort.default argsort.default", call(X), call(X, 1, True)),
    **_each("sort.stable", call(X, stable=True, dim=1, descending=True)),
    **_each("argsort.stable", call(X, stable=True, dim=-1, descending=False)),
    **_each("var.correction std.correction", call(X, [1]), call(X, [-1], correction=0, keepdim=True)),
    **_each("var.dim std.dim", call(X, [1], True), call(X, [2], False, True)),
    **_each("linalg_vector_norm.default", call(X, 2, [-1], True), call(X, 1)),
    **_each("norm.ScalarOpt_dim", call(X, 2, [1]), call(X, None, [1], True)),
    # --- shapes
    **_each("view.default reshape.default _unsafe_view.default", call(X, [2, 12]), call(X, [-1])),
    **_each("view_as.default reshape_as.default", call(X, X.transpose(1, 2))),
    **_each("flatten.using_ints", call(X, 1), call(X)),
    **_each("unflatten.int", call(X, -1, [2, -1])),
    **_each("unsqueeze.default", call(X, 1), call(X, -1)),
    **_each("squeeze.dim", call(X[:, None], 1), call(X, 1)),
    **_each("squeeze.dims", call(_floats(3, 4, 1, 1, 2), [2, 3])),
    **_each("squeeze.default ravel.default", call(_floats(3, 4, 1, 2))),
    **_each("transpose.int swapaxes.default swapdims.default", call(X, 1, -1), call(X, 0, 2)),
    **_each("t.default numpy_T.default", call(MATRIX)),
    **_each("mT.default mH.default adjoint.default", call(X)),
    **_each("permute.default", call(X, [2, 0, 1]), call(X, [0, -1, 1])),
    **_each("movedim.int", call(X, 0, -1)),
    **_each("movedim.intlist", call(X, [0, 1], [2, 0])),
    **_each("expand.default broadcast_to.default", call(_floats(3, 2, 1), [3, -1, 5]), call(MATRIX, [2, 3, 4])),
    **_each("expand_as.default", call(_floats(2, 1, 4), X)),
    **_each("broadcast_tensors.default", call([X, VECTOR])),
    **_each("repeat.default", call(X, [1, 2, 3]), call(MATRIX, [2, 1, 1])),
    **_each("tile.default", call(X, [2]), call(MATRIX, [2, 1, 2])),
    **_each("repeat_interleave.self_int", call(X, 3, 1), call(MATRIX, 2)),
    **_each("slice.Tensor", call(X, 2, 1, 3), call(X, -1, 0, 2**63 - 1, 2), call(X, 2, -3, -1), call(X, 1, 0, 100)),
    **_each("narrow.default", call(X, 2, 1, 2)),
    **_each("select.int", call(X, 1, -1), call(X, 0, 1)),
    **_each("unbind.int", call(X, -1)),
    **_each("split_with_sizes.default split.sizes", call(X, [1, 3], -1)),
    **_each("split.Tensor", call(X, 3, -1)),
    **_each("chunk.default tensor_split.sections", call(X, 3, -1)),
    **_each("cat.default concat.default concatenate.default", call([X, Y], 1), call([X, X.half()], -1)),
    **_each("stack.default", call([X, Y]), call([X, Y], -1)),
    **_each("flip.default", call(X, [1, -1])),
    **_each("roll.default", call(X, [1], [2]), call(X, [-1, 2], [1, 2]), call(MATRIX, [3])),
    **_each("constant_pad_nd.default", call(X, [1, 2]), call(X, [0, 1, 2, 0], 5.0)),
    **_each("pad.default", call(X, [1, 2]), call(X, [1, 0], "constant", -1.0)),
    **_each("diff.default", call(INTEGERS), call(X, 2, 1), call(X, 1, -1, Y[..., :1], Y[..., :2])),
    **_each("meshgrid.default", call([VECTOR, BIAS])),
    **_each("meshgrid.indexing", call([VECTOR, BIAS], indexing="xy")),
    # --- casts and copies
    **_each(
        "to.dtype", call(X, torch.float64), call(INTEGERS, torch.float32), call(X, torch.int64), call(X, torch.bool)
    ),
    **_each("to.dtype_layout", call(X, dtype=torch.bfloat16)),
    **_each("_to_copy.default", call(X, dtype=torch.bfloat16)),
    **_each("to.device", call(X, torch.device("cpu"), torch.float16)),
    **_each("to.other type_as.default", call(X, X.half())),
    **_each("alias.default clone.default contiguous.default detach.default lift_fresh_copy.default", call(X)),
    **_each("resolve_conj.default resolve_neg.default", call(X)),
    **_each("dropout.default feature_dropout.default alpha_dropout.default", call(X, 0.3, False)),
    **_each("native_dropout.default", call(X, 0.3, False)),
    **_each("copy.default", call(X, MATRIX.half())),
    **_each("fill.Scalar", call(X, 2.5)),
    **_each("fill.Tensor", call(X, torch.tensor(2.5))),
    **_each("zero.default", call(X)),
    # --- creation
    **_each("arange.default", call(5), call(2.5)),
    **_each("arange.start", call(2, 7), call(1, 4, dtype=torch.float32)),
    **_each("arange.start_step", call(1, 9, 3), call(0.0, 1.0, 0.25)),
    **_each("full.default", call([2, 3], 1.5), call([2], True)),
    **_each("new_full.default", call(X, [2, 3], 2.0)),
    **_each("full_like.default", call(X, 3.5)),
    **_each("scalar_tensor.default", call(2.5)),
    **_each("zeros.default ones.default", call([2, 3])),
    **_each("new_zeros.default new_ones.default", call(X, [2, 3]), call(X, [2], dtype=torch.bool)),
    **_each("zeros_like.default ones_like.default", call(X)),
    **_each("eye.default", call(3)),
    **_each("eye.m", call(3, 4)),
    **_each("tril.default triu.default", call(SQUARE), call(SQUARE, 1), call(SQUARE > 0, -1)),
    **_each("linspace.default", call(-1.0, 2.0, 7)),
    **_each("one_hot.default", call(INDEX, 4)),
    # --- matrix products
    **_each("linear.default", call(X, _floats(5, 4)), call(X, _floats(5, 4), _floats(5))),
    **_each("matmul.default", call(X, SQUARE), call(X, VECTOR), call(VECTOR, SQUARE), call(VECTOR, VECTOR)),
    **_each("mm.default", call(MATRIX, _floats(4, 5))),
    **_each("bmm.default", call(X, SQUARE)),
    **_each("mv.default", call(MATRIX, VECTOR)),
    **_each("dot.default", call(VECTOR, VECTOR)),
    **_each(
        "addmm.default",
        call(_floats(5), MATRIX, _floats(4, 5)),
        call(_floats(3, 5), MATRIX, _floats(4, 5), beta=2, alpha=0.5),
    ),
    **_each("baddbmm.default", call(Y, X, SQUARE)),
    **_each("outer.default", call(VECTOR, BIAS)),
    **_each("embedding.default", call(_floats(7, 4), INDEX), call(_floats(7, 4), INDEX, 1)),
    **_each(
        "einsum.default",
        call("bij,bjk->bik", [X, SQUARE]),
        call("bij,kj->kbi", [X, MATRIX]),
        call("i,j->ji", [VECTOR, BIAS]),
    ),
    # --- convolutions and norms
    **_each("conv1d.default", call(SIGNAL, FILTER, BIAS, [2], [1], [1], 2), call(SIGNAL[0], _floats(6, 4, 3))),
    **_each("conv2d.default", call(IMAGE, KERNEL, BIAS, [2, 1], [1, 0], [1, 2], 2), call(IMAGE, _floats(6, 4, 3, 3))),
    **_each(
        "conv1d.padding",
        call(SIGNAL, FILTER, BIAS, [1], "same", [2], 2),
        call(SIGNAL, FILTER, None, [2], "valid", [1], 2),
    ),
    **_each(
        "conv2d.padding",
        call(IMAGE, KERNEL, BIAS, [1, 1], "same", [1, 1], 2),
        call(IMAGE, KERNEL, None, [2, 2], "valid", [1, 1], 2),
    ),
    **_each("adaptive_avg_pool1d.default", call(SIGNAL, [1])),
    **_each("adaptive_avg_pool2d.default", call(IMAGE, [1, 1])),
    **_each(
        "convolution.default",
        call(IMAGE, KERNEL, BIAS, [2, 2], [1, 1], [1, 1], False, [0, 0], 2),
        call(SIGNAL, FILTER, None, [1], [0], [1], False, [0], 2),
    ),
    **_each("layer_norm.default", call(X, [4], VECTOR, VECTOR, 1e-5), call(X, [4]), call(X, [3, 4], MATRIX, MATRIX)),
    **_each("rms_norm.default", call(X, [4], VECTOR, 1e-6), call(X, [4]), call(X, [3, 4], MATRIX, 1e-5)),
    **_each(
        "batch_norm.default",
        call(X, _floats(3), _floats(3), _floats(3), _floats(3).abs(), False, 0.1, 1e-5, False),
        call(X, None, None, _floats(3), _floats(3).abs(), False, 0.1, 1e-5, False),
    ),
    # --- attention
    **_each(
        "scaled_dot_product_attention.default",
        call(Q, Q + 1, Q - 1),
        call(Q, Q + 1, Q - 1, None, 0.0, True, scale=0.3),
        call(Q, K, K + 1, _floats(2, 1, 5, 5) > -0.5, enable_gqa=True),
        call(Q, Q, Q + 1, _floats(5, 5)),
        call(X, Y, X),
    ),
    # --- indices
    **_each(
        "index.Tensor",
        call(X, [ROWS - 1]),
        call(X, [None, INDEX]),
        call(X, [INDEX - 1, INDEX]),
        call(X, [None, ROWS, ROWS + 1]),
    ),
    **_each("index_select.default", call(X, 1, ROWS)),
    **_each("gather.default", call(X, 1, INDEX[:, :, None].expand(2, 3, 4))),
    **_each("take_along_dim.default", call(X, INDEX[:, :, None], 1)),
    **_each("scatter.src", call(X, 1, INDEX[:, :2, None].expand(2, 2, 4)[:, :1], Y)),
    **_each("scatter.value", call(X, 1, INDEX[:, :, None].expand(2, 3, 4), 2.0)),
    **_each("index_copy.default", call(X, 1, ROWS, _floats(2, 2, 4, seed=3))),
    **_each(
        "index_put.default",
        call(X, [None, ROWS], _floats(2, 2, 4, seed=3)),
        call(X, [ROWS - 1], torch.tensor(1.5)),
        call(VECTOR, [VECTOR > 0], torch.tensor(0.0)),
    ),
    **_each("slice_scatter.default", call(X, Y[..., :2], 2, 1, 3), call(X, Y[..., :2], 2, 0, 4, 2)),
    **_each("select_scatter.default", call(X, Y[:, 0], 1, -1)),
}
