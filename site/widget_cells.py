"""The part of a notebook that a widget needs: its own cell and, before it, those that define what it uses.

Notebooks train networks on the way to their widgets; a browser test, or a page with a widget's frames drawn in
advance, can do without that.  Which cells are needed is read from the code: those that give a value to a name
which a later needed cell reads.
"""

import ast
import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import nbformat

MAKERS = ("frame_slider", "noise_slider", "scrubber", "prompt_box")  # of `diffusion_utils.plotting.widgets`


def widget_cells(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """For every cell of a notebook that shows a widget: its place, and the code to run, a string for each cell.

    Args:
        path: of an .ipynb file.

    Yields:
        The cell's place among all the notebook's cells, from 0; and sources in order, the last being its own.
    """
    cells = nbformat.read(path, as_version=4).cells
    sources = [cell.source if cell.cell_type == "code" else "" for cell in cells]
    for place, source in enumerate(sources):
        if any(f"widgets.{maker}(" in source for maker in MAKERS):
            yield place, [sources[i] for i in needed(sources, place)]


def needed(sources: list[str], place: int) -> list[int]:
    """Places of the cells that the cell at `place` needs, itself included, in order.

    Args:
        sources: code of all cells, "" for what is no code.
    """
    missing, chosen = names(sources[place])[1], [place]
    for i in reversed(range(place)):
        defined, read = names(sources[i])
        # What is called only for its effect on a thing (net.eval()) is not seen; no widget needs that.
        if defined & missing:
            missing = (missing - defined) | read
            chosen.append(i)
    return chosen[::-1]


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives a value, and those it reads that it has not given one before."""
    defined, missing = set(dir(builtins)), set()
    for statement in ast.parse(source).body:
        scope = symtable.symtable(ast.unparse(statement), "cell", "exec")
        assigned = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        # x = f(x) reads an x from before; for x in …: f(x) reads its own.
        own = set() if isinstance(statement, ast.Assign | ast.AugAssign | ast.Expr) else assigned
        missing |= _global_reads(scope) - defined - own
        defined |= assigned
    return defined - set(dir(builtins)), missing


def _global_reads(scope: symtable.SymbolTable) -> set[str]:
    """Names of the module that a scope, or one inside it, reads."""
    at_top = scope.get_type() == "module"
    read = {
        symbol.get_name() for symbol in scope.get_symbols() if symbol.is_referenced() and (at_top or symbol.is_global())
    }
    return read.union(*map(_global_reads, scope.get_children()))
