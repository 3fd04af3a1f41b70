"""EdNet's logs of tutoring: from a zip of one CSV per student to one parquet file, and back to rows, lazily.

Source: Choi et al. 2019, EdNet (arXiv:1912.03072), and the description of riiid/ednet. The data are under CC BY-NC 4.0: nothing of them is
here. ``interactions.parquet`` holds whole students in order of their number, each in order of time and then of the file, because questions
of one bundle may share a time; a row group holds whole students too, so that everything after can go through it group by group.
"""

from __future__ import annotations

import json
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preceptor.core.files import write_whole
from preceptor.core.optional import require
from preceptor.education.archives import Archive, BrokenMemberError
from preceptor.education.ednet_actions import Bundles, Responses, answers_of, bundles_from
from preceptor.education.ednet_text import (
    Conversion,
    Level,
    batches,
    check_header,
    dictionaries,
    header_of,
    question_rows,
    read_batch,
    read_csv,
)

if TYPE_CHECKING:
    import polars
    import pyarrow

INTERACTIONS, QUESTIONS, REPORT = "interactions.parquet", "questions.parquet", "conversion.json"
_CONTENTS = ("questions.csv", "lectures.csv", "payments.csv", "coupons.csv")
_MEMBER = re.compile(r"(?:^|/)u(\d{1,18})\.csv$")


def convert(
    zip_path: Path,
    out: Path,
    *,
    level: Level | None = None,
    contents: Path | None = None,
    answers: bool = False,
    batch_users: int = 2000,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Conversion:
    """Turn a zip of ``u{ID}.csv`` files into ``OUT/interactions.parquet``, without extracting it.

    Memory is that of one batch, however many students there are. Content tables (``questions.csv``, ...) are taken from the same zip, or
    from ``contents``, and written beside it; ``conversion.json`` says what was left out.

    Args:
        zip_path: the archive; folders in it do not matter.
        out: folder, made when missing.
        level: None: the first whose columns those of the first student are.
        contents: a zip or a folder with the content tables.
        answers: of a log of actions (KT2 to KT4) keep the answers that were submitted, as rows of KT1 (`ednet_actions`).
        batch_users: students parsed at one time, in one row group.
        warn: called with one line for each kind of thing that was left out or is unknown.
    Returns:
        The counts.
    Raises:
        ValueError: no zip archive, no student in it, columns that are not those of the level, with the nearest named, or ``answers``
            without a table of questions or of a log that is KT1 already.
    """
    parquet = require("pyarrow.parquet", extra="education", purpose="EdNet's logs")
    out.mkdir(parents=True, exist_ok=True)
    users, names = array("q"), list[str]()  # a few bytes for each of very many students
    tables: dict[str, int] = {}

    def keep(name: str) -> bool:
        if (found := _MEMBER.search(name)) and "__MACOSX" not in name:
            users.append(int(found[1]))
            names.append(sys.intern(name.rpartition("/")[0]))
            return True
        if (base := name.rpartition("/")[2]) in _CONTENTS:
            tables[base] = len(users)
            users.append(-1)
            names.append(base)
            return True
        return False

    with Archive(zip_path, keep) as archive:
        numbers = np.frombuffer(users, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        order = order[numbers[order] >= 0]
        if not len(order):
            raise ValueError(f"zip: expected files u1.csv, u2.csv, ... in {zip_path}, got none")
        report = Conversion(level=level or "")
        content_tables = _content_tables(archive, tables, contents, report)
        bundles = _bundles(content_tables) if answers else None
        texts = _texts(archive, order, users, names, report)
        aside = out / f".{INTERACTIONS}.partial"
        writer = None
        for header, batch in batches(texts, batch_users):
            table, kept = read_batch(header, batch, report), report.level
            if bundles is not None:
                table, kept = answers_of(table, bundles, report.responses), "KT1"
            if writer is None:
                schema = table.schema.with_metadata({"level": kept})
                writer = parquet.ParquetWriter(aside, schema, compression="zstd", use_dictionary=dictionaries(kept))
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        if writer is None:
            first = next(iter(report.skipped.items()), None)
            raise ValueError(f"zip: expected at least one row, got none{f'; {first[0]}: {first[1]}' if first else ''}")
        writer.close()
        aside.replace(out / INTERACTIONS)
    for name, table in content_tables.items():
        parquet.write_table(table, out / name, compression="zstd")
    write_whole(out / REPORT, json.dumps(asdict(report), indent=1) + "\n")
    _tell(report, warn)
    return report


def scan(folder: Path) -> polars.LazyFrame:
    """The rows of a converted level, read when they are needed.

    KT1: user, timestamp (ms), solving, question, answer (1-4 for a-d, 0 for another), elapsed (ms). Else: user, timestamp, action, item,
    source, answer, platform, and cursor (ms) for KT4.

    Raises:
        ValueError: ``folder`` holds no converted level.
    """
    polars = require("polars", extra="education", purpose="lazy scans of EdNet's logs")
    return polars.scan_parquet(_present(folder / INTERACTIONS))


def scan_answers(folder: Path, *, groups: Sequence[int] | None = None) -> Iterator[pyarrow.Table]:
    """Rows of KT1, one row group of whole students at a time: as they are, or made of actions when they are asked for.

    Args:
        folder: of `convert`, at any level; for actions with questions.
        groups: only these row groups, in this order; None: all.
    Raises:
        ValueError: no such file, or actions without a table of questions.
    """
    parquet = require("pyarrow.parquet", extra="education", purpose="EdNet's logs")
    with parquet.ParquetFile(_present(folder / INTERACTIONS)) as file:
        actions = "action" in file.schema_arrow.names
        bundles = bundles_from(parquet.read_table(_present(folder / QUESTIONS))) if actions else None
        for group in range(file.num_row_groups) if groups is None else groups:
            table = file.read_row_group(group)
            yield table if bundles is None else answers_of(table, bundles, Responses())


def content(folder: Path, name: str = "questions") -> polars.DataFrame:
    """A content table: ``questions`` (question, bundle, explanation, answer, part, tags, deployed), or another as it was.

    Raises:
        ValueError: it was not converted.
    """
    polars = require("polars", extra="education", purpose="EdNet's content tables")
    return polars.read_parquet(_present(folder / f"{name}.parquet"))


def parse(users: Iterable[tuple[int, bytes]], level: Level) -> pyarrow.Table:
    """The rows of students whose CSV files are in memory, as `convert` writes them.

    Args:
        users: number of the student, content of the file, in order of the number.
        level: of the logs.
    Raises:
        ValueError: columns that are not those of the level.
    """
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    report = Conversion(level=level)
    given = [(user, text) for user, text in users if text.strip()]
    for _, text in given:
        check_header(header_of(text), report)
    tables = [read_batch(header, batch, report) for header, batch in batches(iter(given), len(given) or 1)]
    return pyarrow.concat_tables(tables)


def _texts(
    archive: Archive, order: np.ndarray, users: Sequence[int], names: Sequence[str], report: Conversion
) -> Iterator[tuple[int, bytes]]:
    """Students and the texts of their files that can be read, in order."""
    for number in map(int, order):
        user = users[number]
        try:
            if user >= 2**31:
                raise BrokenMemberError("expected a number of the student below 2^31")
            text = archive.read(number).removeprefix(b"\xef\xbb\xbf")
            header = header_of(text)
            if not header or len(text.strip()) <= len(header):
                report.empty += 1
                continue
            check_header(header, report)
        except (BrokenMemberError, ValueError) as error:
            if not isinstance(error, BrokenMemberError) and report.rows == 0 and not report.users:
                raise
            report.skipped["/".join(filter(None, (names[number], f"u{user}.csv")))] = str(error)
            continue
        report.users += 1
        yield user, text


def _read_contents(given: Path | None) -> dict[str, bytes]:
    if given is None:
        return {}
    if given.is_dir():
        return {path.name: path.read_bytes() for path in sorted(given.iterdir()) if path.name in _CONTENTS}
    names: list[str] = []

    def keep(name: str) -> bool:
        base = name.rpartition("/")[2]
        names.extend([base] if base in _CONTENTS else [])
        return base in _CONTENTS

    with Archive(given, keep) as archive:
        return {name: archive.read(number) for number, name in enumerate(names)}


def _content_tables(archive: Archive, members: dict[str, int], given: Path | None, report: Conversion) -> dict[str, pyarrow.Table]:
    """By the name of the file to write."""
    texts = {}
    for name, number in members.items():
        try:
            texts[name] = archive.read(number)
        except BrokenMemberError as error:
            report.skipped[name] = str(error)
    texts |= _read_contents(given)
    return {
        name.replace(".csv", ".parquet"): question_rows(text) if name == "questions.csv" else read_csv(text) for name, text in texts.items()
    }


def _bundles(content_tables: dict[str, pyarrow.Table]) -> Bundles:
    if QUESTIONS not in content_tables:
        raise ValueError(
            "contents: expected questions.csv, which says what questions are in a bundle, in the zip or given beside it, got none"
        )
    return bundles_from(content_tables[QUESTIONS])


def _tell(report: Conversion, warn: Callable[[str], None]) -> None:
    if report.skipped:
        shown = ", ".join(f"{name} ({why})" for name, why in list(report.skipped.items())[:3])
        warn(f"{len(report.skipped)} member(s) skipped: {shown}{', ...' if len(report.skipped) > 3 else ''}")
    if report.unknown_actions:
        most = sorted(report.unknown_actions.items(), key=lambda found: -found[1])[:5]
        warn(f"unknown actions kept: {', '.join(f'{name} ({rows} rows)' for name, rows in most)}")
    if report.malformed:
        warn(f"{report.malformed} malformed line(s) or value(s)")
    if report.responses.unknown:
        warn(f"{report.responses.unknown} response(s) to questions that are not in questions.csv left out")
    if report.other_answers:
        warn(f"{report.other_answers} answer(s) outside a-d, which are never correct")


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"folder: expected {path.name} in {path.parent}, as `preceptor ednet convert` writes it, got no such file")
    return path
