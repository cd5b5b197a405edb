"""Records that have one of their keys twice: every reader silently takes one or the other.

Decoders do not notice.  Counting the keys costs as much as decoding, counting quotation marks far less.  So
the keys are counted in the first `COUNTED` bytes of a file, and after that where the marks per record are not
as many as before: a twin beside a record that lacks another key is overlooked there.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.data.json_records import Chunk
from pipeline.errors import InputError

COUNTED = 4 * 2**20
KEYS = {
    "images": ("id", "width", "height", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


class TwinKeys:
    """Looks at every chunk of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quotes: dict[str, float] = {}  # per record, in chunks without twins

    def refuse(self, chunk: Chunk) -> None:
        """Raise if a key of `KEYS` stands twice in a record.

        Raises:
            InputError: names the key and the record.
        """
        quotes = chunk.text.count(b'"') / len(chunk.records)
        if chunk.start > COUNTED and quotes == self.quotes.get(chunk.key):
            return
        keys = KEYS[chunk.key]
        if any(chunk.text.count(b'"%s"' % key.encode()) > len(chunk.records) for key in keys):
            self._look_inside(chunk, keys)  # perhaps only an object inside the record has such a key
        self.quotes[chunk.key] = quotes

    def _look_inside(self, chunk: Chunk, keys: tuple[str, ...]) -> None:
        def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            record = dict(pairs)
            twice = [key for key in keys if sum(name == key for name, _ in pairs) > 1]
            if twice:
                raise InputError(
                    f"{self.path}: `{twice[0]}` appears twice in a record of `{chunk.key}` "
                    f"with id {record.get('id')} (after byte {chunk.start})"
                )
            return record

        json.loads(chunk.text, object_pairs_hook=no_twins)
