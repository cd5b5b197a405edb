"""A position in a large JSON file: its outermost object's keys, and values to pass over.

Byte positions count from 0 at the beginning of the file.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipeline.errors import InputError, MissingInput

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACE = re.compile(rb"[ \t\r\n]*")
KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"[ \t\r\n]*:[ \t\r\n]*')
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|["\[\]{}]|[^\[\]{}",]+')  # a string, a bracket, or what lies between
KEY_WINDOW = 2**16
MARKS = {
    b"\x1f\x8b": "compressed with gzip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PK": "a zip file",
}


class Scan:
    """A position in the file, and what can be read from there."""

    def __init__(self, path: Path, file: int, size: int) -> None:
        self.path, self.file, self.size, self.pos = path, file, size, 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, path: Path) -> Iterator["Scan"]:
        """A scan of the file, open as long as the context.

        Raises:
            MissingInput, InputError: it is not there, or cannot be read.
        """
        with _opened(path) as file:
            yield cls(path, file, os.fstat(file).st_size)

    def enter_object(self) -> None:
        """Move behind the brace that opens the outermost object, and the byte order mark before it."""
        if self.window(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            self.pos += len(BYTE_ORDER_MARK)
        if self.next_byte() != b"{":
            raise self._no_object()
        self.pos += 1

    def window(self, length: int) -> bytes:
        """Up to `length` bytes from the position on; fewer only at the end of the file."""
        parts, begin = [], self.pos
        while begin < min(self.pos + length, self.size):
            part = os.pread(self.file, self.pos + length - begin, begin)
            if not part:
                raise self.broken("the file became shorter while it was read", begin)
            parts.append(part)
            begin += len(part)
        return b"".join(parts)

    def next_byte(self) -> bytes:
        """The first byte that is no space, which the position then is at; empty at the end of the file."""
        while window := self.window(KEY_WINDOW):
            begin = SPACE.match(window).end()  # type: ignore[union-attr]
            self.pos += begin
            if begin < len(window):
                return window[begin : begin + 1]
        return b""

    def key(self, first: bool) -> str | None:
        """The next key of the outermost object, the position then at its value; None at the object's end."""
        found = self.next_byte()
        if found == b"}":
            self.pos += 1
            if self.next_byte():
                raise self.broken("something follows the outermost object", self.pos)
            return None
        if not first:
            if found != b",":
                raise self.broken("a comma was expected" if found else "the file ends too early", self.pos)
            self.pos += 1
            found = self.next_byte()
        match = KEY.match(self.window(KEY_WINDOW)) if found == b'"' else None
        if match is None:
            raise self.broken("a key was expected" if found else "the file ends too early", self.pos)
        self.pos += match.end()
        try:
            return str(json.loads(b'"' + match.group(1) + b'"'))
        except ValueError:
            raise self.broken("a key is not valid text", self.pos) from None

    def begins_records(self) -> bool:
        """Whether the value at the position is a list whose first element is an object."""
        return re.match(rb"\[[ \t\r\n]*\{", self.window(KEY_WINDOW)) is not None

    def pass_over(self) -> None:
        """Move behind the value at the position, which no one asked for."""
        begin, length = self.pos, KEY_WINDOW
        while True:
            window = self.window(length)
            end = _end_of_value(window)
            if end is not None:
                break
            if len(window) < length:
                raise self.broken("the file ends too early", self.size)
            length *= 4
        try:
            msgspec.json.decode(window[:end], type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError) as problem:
            raise self.broken(str(problem), begin) from None
        self.pos += end

    def broken(self, what: str, byte: int) -> InputError:
        """The error of a file that is not JSON."""
        hint = "is the download complete?" if byte >= self.size else ""
        return InputError(f"{self.path} is not valid JSON: {what} (byte {byte} of {self.size})", hint)

    def no_list(self, key: str) -> InputError:
        """The error of a file that has no list of records under `key`."""
        return InputError(f"{self.path} has no list `{key}`: it is not a COCO or LVIS annotation file")

    def _no_object(self) -> InputError:
        """The error of a file whose outermost value is not an object; JSON of another kind is named."""
        begin = self.window(2**20)
        for mark, kind in MARKS.items():
            if begin.startswith(mark):
                return InputError(f"{self.path} is {kind}, not JSON in UTF-8", "convert it first")
        try:
            kind = type(json.loads(begin.decode())).__name__
        except (ValueError, RecursionError):
            return self.broken("it does not begin with {", self.pos)
        return InputError(
            f"{self.path} holds a {kind}, not the images, annotations and categories of a COCO or LVIS file"
        )


def _end_of_value(window: bytes) -> int | None:
    """Where the value at the beginning of the window ends; None if that is not in the window."""
    depth = 0
    for token in TOKEN.finditer(window):
        text = token.group()
        if text == b'"':  # a string that is not whole
            return None
        depth += (text in b"[{") - (text in b"]}")
        if depth <= 0 and token.end() < len(window):
            return token.end()
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    if path.exists() and not path.is_file():
        raise InputError(f"annotations {path} is not a regular file")
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise MissingInput(
            f"annotations {path} do not exist", "check data: in params.yaml, or --annotations"
        ) from None
    except OSError as problem:
        raise InputError(f"annotations {path} cannot be read: {problem.strerror}") from None
    try:
        yield file
    except OSError as problem:
        raise InputError(f"annotations {path} cannot be read: {problem.strerror}") from None
    finally:
        os.close(file)
