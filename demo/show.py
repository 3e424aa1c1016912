"""Runs SQL over a connection and prints each statement with its result and time, legibly."""

import textwrap
import time

import pyarrow

WIDTH = 110
MAX_CELL = 64


def heading(text: str) -> None:
    print(f"\n── {text} " + "─" * max(0, WIDTH - len(text) - 4), flush=True)


def note(text: str) -> None:
    print("\n" + textwrap.fill(text, WIDTH), flush=True)


def run(connection, sql: str, parameters=None, *, shown: str | None = None, wrap: bool = False) -> pyarrow.Table:
    """Runs a query and prints it (or `shown` in its place), its rows, and the time to the last of them."""
    print("\n" + textwrap.indent(textwrap.dedent(shown or sql).strip(), "  sql> ", lambda line: True), flush=True)
    with connection.cursor() as cursor:
        start = time.perf_counter()
        cursor.execute(sql, parameters)
        table = cursor.fetch_arrow_table()
        elapsed = time.perf_counter() - start
    print_rows(table, wrap)
    print(f"  -- {table.num_rows} row{'s' * (table.num_rows != 1)} in {duration(elapsed)}", flush=True)
    return table


def change(connection, sql: str, rows: list | None = None, *, shown: str | None = None) -> float:
    """Runs a statement that returns no rows, once per row of parameters, and prints it; returns the seconds."""
    print("\n" + textwrap.indent(textwrap.dedent(shown or sql).strip(), "  sql> ", lambda line: True), flush=True)
    with connection.cursor() as cursor:
        start = time.perf_counter()
        if rows is None:
            cursor.execute(sql)
        else:
            cursor.executemany(sql, rows)
        elapsed = time.perf_counter() - start
    if rows is None:
        print(f"  -- done in {duration(elapsed)}", flush=True)
    else:
        print(f"  -- {len(rows)} rows in {duration(elapsed)}, {len(rows) / elapsed:,.0f} rows/s", flush=True)
    return elapsed


def print_rows(table: pyarrow.Table, wrap: bool) -> None:
    """A table, or with `wrap` every value whole on lines of its own."""
    if wrap:
        for row in table.to_pylist():
            for name, value in row.items():
                text = textwrap.fill(str(value), WIDTH - 8)
                print(f"    {name}:\n" + textwrap.indent(text, "      "))
        return
    names = table.column_names
    cells = [[cell(value) for value in row.values()] for row in table.to_pylist()]
    widths = [max(len(name), *(len(row[index]) for row in cells), 0) for index, name in enumerate(names)] if cells else [
        len(name) for name in names
    ]
    line = "    " + "  ".join("-" * width for width in widths)
    print("    " + "  ".join(name.ljust(width) for name, width in zip(names, widths)) + "\n" + line)
    for row in cells:
        print("    " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def cell(value) -> str:
    """A value in at most MAX_CELL characters."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes: {value[:12].hex(' ')} .."
    if isinstance(value, list):
        head = ", ".join(f"{x:.4f}" if isinstance(x, float) else str(x) for x in value[:3])
        return f"[{head}{', ..' if len(value) > 3 else ''}]"
    text = f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 2] + ".."


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
