"""Streaming the lists of a large JSON file: `{"images": [{...}, ...], "annotations": [{...}, ...], ...}`.

A file of a gigabyte is read in windows of half a megabyte, so memory does not grow with it.  Where one
record ends and the next begins is guessed from the text and proved by decoding: a window that is cut inside
a record, inside a string or inside a nested list is no valid list.

Byte positions count from 0 at the beginning of the file.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.data.json_scan import SPACE, Scan
from pipeline.errors import InputError

WINDOW = 2**19  # stays in a processor's cache
ANY_SEPARATOR = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*\{")
FIRST_KEY = re.compile(rb'\{[ \t\r\n]*("(?:[^"\\]|\\.)*")')
TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")  # msgspec: the list ended before this byte
ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[msgspec.Raw])
AT_BYTE = re.compile(r"\(byte (\d+)\)")
Explain = Callable[[str, list[Any], int], None]


@dataclass(frozen=True)
class Chunk:
    """Neighbouring records of one list."""

    key: str
    first: int  # position of its first record in the list
    records: list[Any]  # decoded
    text: bytes  # `[{...}, ...]`, from which they were decoded
    start: int  # byte of the file that text[0], a bracket of ours, would have


def stream(
    path: Path, decoders: Mapping[str, msgspec.json.Decoder[Any]], explain: Explain | None = None
) -> Iterator[Chunk]:
    """The records of the lists named in `decoders`, in the order of the file; other keys are passed over.

    Args:
        path: a JSON object in UTF-8, with or without a byte order mark.
        decoders: key -> decoder of a list of records.
        explain: (key, records as plain values, position of the first) is called when a decoder refuses
            records that are JSON, to raise a better error than the decoder's.

    Raises:
        MissingInput: no such file.
        InputError: not JSON, or a list is missing, twice there, or holds something else; names the byte.
    """
    with Scan.of(path) as scan:
        scan.enter_object()
        seen: set[str] = set()
        while (key := scan.key(first=not seen)) is not None:
            if key in seen:
                raise InputError(f"{path}: key `{key}` appears twice, again before byte {scan.pos}")
            seen.add(key)
            if key in decoders:
                yield from _List(scan, key, decoders[key], explain).chunks()
            elif scan.begins_records():  # may be as long as those that are wanted
                for _ in _List(scan, key, ANYTHING, None).chunks():
                    pass
            else:
                scan.pass_over()
        for key in decoders:
            if key not in seen:
                raise scan.no_list(key)


class _List:
    """One list of records, cut into chunks."""

    def __init__(
        self, scan: Scan, key: str, decoder: msgspec.json.Decoder[Any], explain: Explain | None
    ) -> None:
        self.scan, self.key, self.decoder, self.explain = scan, key, decoder, explain
        self.count = 0

    def chunks(self) -> Iterator[Chunk]:
        """Every record once; the scan is behind the list then."""
        scan = self.scan
        if scan.next_byte() != b"[":
            raise scan.no_list(self.key)
        scan.pos += 1
        after = scan.next_byte()
        separator = self._separator() if after == b"{" else None
        if separator is None and after != b"]":
            raise scan.no_list(self.key) if after else scan.broken("the file ends too early", scan.size)
        while separator is not None:
            chunk, is_last = self._cut(separator)
            yield chunk
            scan.pos = chunk.start + len(chunk.text) - 1  # at the comma, or at the closing bracket
            self.count += len(chunk.records)
            if is_last:
                break
            scan.next_byte()
            scan.pos += 1
        scan.next_byte()
        scan.pos += 1

    def _separator(self) -> re.Pattern[bytes]:
        """What stands between two records, most likely: nested objects begin with another key."""
        first = FIRST_KEY.match(self.scan.window(2**16))
        return re.compile(
            rb"\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*" + (re.escape(first.group(1)) if first else b"")
        )

    def _cut(self, separator: re.Pattern[bytes]) -> tuple[Chunk, bool]:
        """The records of one window, and whether they are the last."""
        length = WINDOW
        while True:
            window = self.scan.window(length)
            for end in self._ends(window, separator):
                text, records = self._decoded(b"[" + window[:end] + b"]")
                if records is not None:
                    chunk = Chunk(self.key, self.count, records, text, self.scan.pos - 1)
                    return chunk, self._closes(window, len(text) - 2)
            if len(window) < length:
                raise self._malformed(window)
            length *= 2

    def _ends(self, window: bytes, separator: re.Pattern[bytes]) -> Iterator[int]:
        """Where the last whole record of the window may end, most likely first."""
        if len(window) < WINDOW:  # the rest of the file
            end = self._end_of_list(window)
            if end is not None:
                yield end
        for kind in (separator, ANY_SEPARATOR):
            for begin in (max(0, len(window) - 2**14), 0):  # few records are longer than its end
                places = [m.start() + 1 for m in kind.finditer(window, begin)]
                yield from places[:-17:-1]
        end = self._end_of_list(window)
        if end is not None:
            yield end

    def _end_of_list(self, window: bytes) -> int | None:
        """Where the bracket that closes the list stands; None if the list goes on, or is not JSON."""
        try:
            msgspec.json.decode(b"[" + window, type=msgspec.Raw)
        except msgspec.DecodeError as problem:
            trailing = TRAILING.search(str(problem))
            return (
                window.rfind(b"]", 0, int(trailing.group(1)) - 1) if trailing else self._lenient_end(window)
            )
        except RecursionError:
            return None
        return window.rfind(b"]")

    def _lenient_end(self, window: bytes) -> int | None:
        """The same for what Python reads and JSON forbids, such as NaN: `explain` then names the record."""
        try:
            text = window.decode("utf-8", errors="surrogateescape")
            _, end = json.JSONDecoder().raw_decode("[" + text)
        except (ValueError, RecursionError):
            return None
        return len(text[: end - 2].encode("utf-8", errors="surrogateescape"))  # without our bracket, and its

    def _closes(self, window: bytes, end: int) -> bool:
        return window[SPACE.match(window, end).end() :][:1] == b"]"  # type: ignore[union-attr]

    def _decoded(self, text: bytes) -> tuple[bytes, list[Any] | None]:
        """The text up to the end of the list, and its records; None where it was cut at a wrong place."""
        try:
            records: list[Any] = self.decoder.decode(text)
            if _is_utf8(text):  # strings that are passed over are not decoded above
                return text, records
            raise self._at_byte(ValueError(), text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            trailing = TRAILING.search(str(problem))
            if trailing:  # the list ends before the cut
                return self._decoded(text[: text.rfind(b"]", 0, int(trailing.group(1))) + 1])
            if not _is_utf8(text):
                raise self._at_byte(problem, text) from None
            try:
                plain = json.loads(text)
            except (ValueError, RecursionError):
                return text, None
            self._explain(plain, text, problem)
        return text, None

    def _explain(self, plain: list[Any], text: bytes, problem: Exception) -> None:
        """Raise the best error for records that are whole, but are refused."""
        if not all(isinstance(record, dict) for record in plain):
            raise self.scan.no_list(self.key)
        if self.explain is not None:
            self.explain(self.key, plain, self.count)
        if isinstance(problem, msgspec.ValidationError):
            raise InputError(f"{self.scan.path}: `{self.key}`: {problem}")
        raise self._at_byte(problem, text)

    def _malformed(self, window: bytes) -> InputError:
        """The error of a list whose records never end."""
        try:
            msgspec.json.decode(b"[" + window, type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError) as problem:
            return self._at_byte(problem, b"[" + window)
        return self.scan.broken("a record was expected", self.scan.pos)

    def _at_byte(self, problem: Exception, text: bytes) -> InputError:
        begin = self.scan.pos - 1
        byte = None if text.isascii() else _first_non_utf8(text)
        if byte is not None:
            return self.scan.broken("not UTF-8", begin + byte)
        found = AT_BYTE.search(str(problem))
        if found is None:
            truncated = "truncated" in str(problem)
            return self.scan.broken(str(problem), self.scan.size if truncated else self.scan.pos)
        byte = int(found.group(1))
        shown = text[byte : byte + 12].decode("ascii", errors="replace")
        return self.scan.broken(f"{shown!r} is no value", begin + byte)


def _is_utf8(text: bytes) -> bool:
    return text.isascii() or _first_non_utf8(text) is None


def _first_non_utf8(text: bytes) -> int | None:
    try:
        text.decode()
    except UnicodeDecodeError as problem:
        return problem.start
    return None
