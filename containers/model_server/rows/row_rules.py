"""For each op that keeps rows apart, what its outputs depend on, by the values of its inputs.

A rule returns the outputs (a list) or the only one; Mixes means that rows may depend on one another. An op
that is not in RULES mixes, unless all of its inputs are constant and it has no state.
"""

from __future__ import annotations

from model_server.rows import (
    row_arithmetic,
    row_axes,
    row_images,
    row_shapes,
    row_slices,
    row_sparse,
    row_states,
)
from model_server.rows.row_states import TABLES

RULES = {
    **row_arithmetic.RULES,
    **row_axes.RULES,
    **row_shapes.RULES,
    **row_slices.RULES,
    **row_images.RULES,
    **row_sparse.RULES,
    **row_states.RULES,
}

READS = frozenset(
    f"{TABLES} Assert BoostedTreesEnsembleResourceHandleOp BoostedTreesPredict LookupTableFind "
    "LookupTableFindV2 LookupTableSize LookupTableSizeV2 Placeholder Print PrintV2 ReadVariableOp "
    "ResourceGather VarHandleOp VarIsInitializedOp Variable VariableV2".split()
)
"""Ops with a state that they don't change. After an Assert that fails, requests run again, one by one."""
