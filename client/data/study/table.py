"""A CSV that lists images: its header and its rows, as text.

Fields are separated by commas, or by what the header shows where no comma is in it: semicolons (Excel where the comma
is the decimal sign) or tabs. UTF-8, with or without a byte order mark.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """A line of a table. cells: by column, stripped. beyond: whether it has more cells than the header."""

    line: int
    cells: Mapping[str, str]
    beyond: bool


def read_table(folder: Path, name: str) -> tuple[list[str], list[Row]]:
    """The columns of a table, in order and as often as the header has them, and its rows.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with (folder / name).open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            between = next((d for d in ",;\t" if d in header), ",")
            reader = csv.DictReader(file, restval="", delimiter=between)
            rows = [
                Row(
                    reader.line_num,
                    {column: (value or "").strip() for column, value in row.items() if column},
                    any(cell.strip() for cell in row.get(None, ())),
                )
                for row in reader
            ]
            return [column for column in reader.fieldnames or [] if column], rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = {
            FileNotFoundError: "it is not there",
            UnicodeDecodeError: "it is not UTF-8; in Excel, save it as 'CSV UTF-8'",
        }.get(type(error), type(error).__name__)
        raise ConfigError(
            f"the CSV {name!r} cannot be read ({why}). Set csv in site.toml to a UTF-8 CSV file, relative to the "
            "source's path."
        ) from error


__all__ = ["Row", "read_table"]
