"""Downloads what KServe names: pairs of a URI and a folder, as arguments."""

from __future__ import annotations

import logging
import sys

from kserve_storage import Storage

logging.basicConfig(level=logging.INFO)
arguments = sys.argv[1:]
if not arguments or len(arguments) % 2:
    sys.exit("usage: initialize URI FOLDER [URI FOLDER ...]")
for uri, folder in zip(arguments[::2], arguments[1::2], strict=True):
    Storage.download(uri, folder)
