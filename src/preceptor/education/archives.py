"""Zip archives of very many small files: read member by member in any order, a few dozen bytes of memory for each.

`zipfile` keeps an object of about 600 bytes for every member, half a gigabyte for the 784,309 students of EdNet.
Source of the layout: PKWARE's APPNOTE, sections 4.3 and 4.5 (stored and deflated members, ZIP64, no encryption).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_END, _LOCATOR, _END64 = (struct.Struct(layout) for layout in ("<4s4H2LH", "<4sLQL", "<4sQ2H2L4Q"))
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_WIDE = 0xFFFFFFFF  # the real value stands in the ZIP64 extra field
_ENCRYPTED, _STORED, _DEFLATED = 1, 0, 8


class BrokenMemberError(ValueError):
    """A member that cannot be read; the others still can."""


class Archive:
    """An open zip archive, whose members are numbered as in its directory.

    Args:
        path: the file.
        keep: whether a member is of interest, by its name; the others get no number.
    Raises:
        ValueError: not a zip archive, or one whose directory is damaged.
    """

    def __init__(self, path: Path, keep: Callable[[str], bool]) -> None:
        self._file = path.open("rb")
        self._columns = {name: array("Q") for name in ("flags", "method", "checksum", "packed", "size", "offset")}
        try:
            self._read_directory(keep)
        except (struct.error, ValueError) as error:
            self._file.close()
            raise ValueError(f"zip: expected a whole zip archive, got {path} ({error})") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._columns["offset"])

    def read(self, number: int) -> bytes:
        """The content of a member.

        Raises:
            BrokenMemberError: encrypted, packed in another way, damaged or cut short.
        """
        flags, method, checksum, packed, size, offset = (column[number] for column in self._columns.values())
        if flags & _ENCRYPTED:
            raise BrokenMemberError("encrypted")
        if method not in (_STORED, _DEFLATED):
            raise BrokenMemberError(f"compression method {method}")
        self._file.seek(offset)
        head = self._file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            raise BrokenMemberError("no member at its place")
        *_, name, extra = _LOCAL.unpack(head)
        self._file.seek(name + extra, 1)
        data = self._file.read(packed)
        if len(data) < packed:
            raise BrokenMemberError("cut short")
        try:
            content = zlib.decompress(data, -zlib.MAX_WBITS, size) if method == _DEFLATED else data
        except zlib.error as error:
            raise BrokenMemberError(str(error)) from error
        if len(content) != size or zlib.crc32(content) != checksum:
            raise BrokenMemberError("checksum differs")
        return content

    def _read_directory(self, keep: Callable[[str], bool]) -> None:
        file = self._file
        length = file.seek(0, 2)
        tail_start = max(0, length - _END.size - 0xFFFF)
        file.seek(tail_start)
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0:
            raise ValueError("its end is missing")
        _, _, _, _, count, _, start, _ = _END.unpack_from(tail, end)
        locator = end - _LOCATOR.size
        if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
            file.seek(_LOCATOR.unpack_from(tail, locator)[2])
            *_, count, _, start = _END64.unpack(file.read(_END64.size))
        file.seek(start)
        for _ in range(count):
            signature, _, _, flags, method, _, _, checksum, packed, size, *rest = _ENTRY.unpack(file.read(_ENTRY.size))
            name_length, extra_length, comment_length, _, _, _, offset = rest
            if signature != b"PK\1\2":
                raise ValueError("its directory is damaged")
            raw = file.read(name_length)
            extra = file.read(extra_length)
            file.seek(comment_length, 1)
            if keep(raw.decode("utf-8" if flags & 0x800 else "cp437", "replace")):
                size, packed, offset = _widened((size, packed, offset), extra)
                for column, value in zip(self._columns.values(), (flags, method, checksum, packed, size, offset), strict=True):
                    column.append(value)


def _widened(values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Size, packed size and offset, those that do not fit 32 bits from the ZIP64 extra field."""
    if _WIDE not in values:
        return values
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            size, packed, offset = (next(wide) if value == _WIDE else value for value in values)
            return size, packed, offset
        place += 4 + length
    raise ValueError("a ZIP64 field is missing")
