"""Hypothesis strategies: input lengths, token budgets, vectors."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

costs = st.lists(st.integers(0, 50), max_size=40)
some_costs = st.lists(st.integers(0, 50), min_size=1, max_size=40)
budgets = st.integers(1, 100)
pass_costs = st.floats(0, 100)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=finite)
