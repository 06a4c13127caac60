# cython: language_level=3, auto_pickle=False
"""The yardstick of the benchmarks: what a call costs that does nothing.

`Unit.call` is the unit U, an empty method of a Cython class; `Unit.context` makes an empty Cython context manager. Both
are as a first draft of anybody's would be: Cython's defaults, no `final`, no freelist. Figures in U mean the same on a
slow machine and on a fast one, which nanoseconds do not.
"""


cdef class Context:

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        pass


cdef class Unit:

    def call(self):
        """Nothing."""

    def context(self):
        """An empty context manager."""
        return Context()
