"""How random programs are drawn: bytes for the planner, long enough that something happens, short enough to shrink."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["program_bytes"]


def program_bytes() -> st.SearchStrategy[bytes]:
    """Hypothesis prefers short bytes strongly, so most are made long; shrinking may still reach the short ones."""
    return st.one_of(
        st.binary(max_size=40),
        st.binary(min_size=100, max_size=400),
        st.binary(min_size=100, max_size=400),
        st.binary(min_size=200, max_size=800),
    )
