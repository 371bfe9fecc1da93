"""What the pages of a Parquet file unfold to: Arrow believes them, whatever the footer says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow.parquet as pq

MOST_UNFOLDED = 3 * 2**27  # bytes of a column's pages that lie together: all are read for one of its values
_MOST_HEADER = 2**24  # bytes of a page's header; Arrow reads no longer one either
_DEEPEST = 8  # of structures in each other in a page's header, which has two
_PAST = 100  # bytes behind the end that Arrow reads too, since early writers were wrong about it
_UNCOMPRESSED, _COMPRESSED, _DATA, _DATA_2 = 2, 3, 5, 8  # fields of a page's header
_INCREMENTAL = 7  # an encoding whose values begin with as much of the one before as they say
_BOOLEANS, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), (3, 4, 5, 6), 7, 8, (9, 10), 12


def measure_unfolded(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> int:
    """Return how many bytes a column's pages of one row group unfold to at most, without unfolding any.

    Args:
        file: the Parquet file.
        chunk: what its footer says of the column there.

    Raises:
        ValueError: if the pages aren't what the footer says, or are none.

    Source:
        The Apache Parquet format, parquet.thrift (PageHeader), and Thrift's compact protocol.

    Example:
        >>> import pyarrow as pa
        >>> file = io.BytesIO()
        >>> pq.write_table(pa.table({"image": [bytes(1000)]}), file, use_dictionary=False)
        >>> measure_unfolded(file, pq.read_metadata(file).row_group(0).column(0))
        1010
    """
    return sum(_bound(header) for header in _list_headers(file, chunk))


def _bound(header: dict[int, Any]) -> int:
    size = int(header[_UNCOMPRESSED])
    count, encoding = _describe_values(header)
    return size * max(count, 1) if encoding == _INCREMENTAL else size


def _describe_values(header: dict[int, Any]) -> tuple[int, int]:
    """Return how many values a page has and how they are encoded; none of one that isn't of data."""
    for field, encoding in ((_DATA, 2), (_DATA_2, 4)):
        if field in header:
            return header[field].get(1, 0), header[field].get(encoding, 0)
    return 0, 0


def _list_headers(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[dict[int, Any]]:
    """Read the headers of a column's pages as Arrow does: until it has all values, or they end."""
    place, first = chunk.data_page_offset, chunk.dictionary_page_offset
    if chunk.has_dictionary_page and first is not None and 0 < first < place:
        place = first
    end, seen = place + chunk.total_compressed_size, 0
    if place < 0 or end > file.seek(0, io.SEEK_END):
        raise ValueError("its footer claims more than the file has")
    while place < end + _PAST and seen < chunk.num_values:
        file.seek(place)
        header = _Header(file).read_struct(_DEEPEST)
        sizes = header.get(_UNCOMPRESSED, -1), header.get(_COMPRESSED, -1)
        if not all(isinstance(size, int) and 0 <= size < 2**31 for size in sizes):
            raise ValueError("a page of it claims a size that is none")
        yield header
        seen += _describe_values(header)[0]
        place = file.tell() + sizes[1]


class _Header:
    """Reads a page's header: its numbers by the numbers of their fields, of what is no number nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST_HEADER

    def read_struct(self, depth: int) -> dict[int, Any]:
        """Read fields until the one that ends them.

        Raises:
            ValueError: if that isn't what is there.
        """
        found: dict[int, Any] = {}
        number = 0
        while byte := self._read_byte():
            number = number + (byte >> 4) if byte >> 4 else self._read_integer()
            if number in found:
                raise ValueError("a page of it says something twice")
            # A truth has no more than its field's head.
            found[number] = None if byte & 15 in _BOOLEANS else self._read(byte & 15, depth)
        return found

    def _read(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._read_byte() if kind == _INTEGERS[0] else self._read_integer()
        if kind == _STRUCT and depth:
            return self.read_struct(depth - 1)
        if kind in (_DOUBLE, _BINARY):
            return self._skip(8 if kind == _DOUBLE else self._read_varint())
        if kind in _LISTS and depth:
            byte = self._read_byte()
            for _ in range(byte >> 4 if byte >> 4 < 15 else self._read_varint()):
                self._read(byte & 15, depth - 1) if byte & 15 not in _BOOLEANS else self._skip(1)
            return None
        raise ValueError("a page of it has no header")  # no header has a map

    def _read_integer(self) -> int:
        value = self._read_varint()
        return value >> 1 ^ -(value & 1)

    def _read_varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._read_byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page of it has a number without an end")

    def _read_byte(self) -> int:
        self._take(1)
        if not (byte := self._file.read(1)):
            raise ValueError("a page of it isn't there")
        return byte[0]

    def _skip(self, count: int) -> None:
        self._take(count)
        self._file.seek(count, io.SEEK_CUR)

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("a page of it has a header without an end")
