"""Inject every fault of the fault table, and print the table in Markdown.

::

    python -m tests.faults [--row 5] [--backend trio] [other arguments of pytest]

The exit status is 1 if a test fails or a row has no test.
"""

from __future__ import annotations

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "--fault-table", *sys.argv[1:]]))
