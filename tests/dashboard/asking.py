"""Asking the dashboard's application as a browser would, without a network; and reading its series."""

import base64
import gzip
import json

import numpy as np
from starlette.testclient import TestClient

from penstock.dashboard.access import Access
from penstock.dashboard.app import build_app

TOKEN = "a-token-of-a-test-that-is-long-enough"


def client(runs_dir, host="127.0.0.1", page=None, **options):
    """A browser at the page of a folder's runs; `base_url` says by which name it asks."""
    access = Access(host, TOKEN, options.pop("allowed", ()))
    app = build_app(runs_dir, access, **({"page": page} if page else {}))
    return TestClient(app, base_url=options.pop("base_url", "http://127.0.0.1:8080"), raise_server_exceptions=options.pop("raises", True), **options)


def with_token(runs_dir, **options):
    """A browser that sends the token."""
    return client(runs_dir, headers={"X-Penstock-Token": TOKEN}, **options)


def courses(body):
    """The header of a series answer, and its courses by name: columns by name."""
    size = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + size])
    found = {}
    for told in header["courses"]:
        at, found[told["name"]] = told["offset"], {}
        assert at % 8 == 0
        for names, dtype in ((("step", "time", "tokens"), "<f8"), (("value", "low", "high"), "<f4"), (("low_rank", "high_rank"), "<i4")):
            for name in names:
                found[told["name"]][name] = np.frombuffer(body, dtype, told["rows"], at)
                at += told["rows"] * np.dtype(dtype).itemsize
    return header, found


def thawed(text):
    """The answers that a frozen page carries, and the courses of its metrics as bytes."""
    data = gzip.decompress(base64.b64decode(text.partition('id="frozen">')[2].partition("</script>")[0], validate=True))
    end = 4 + int.from_bytes(data[:4], "little")
    return json.loads(data[4:end]), data[end:]
