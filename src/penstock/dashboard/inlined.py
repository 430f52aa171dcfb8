"""The page in one file: its script and style inside, the data beside them, and a policy that lets nothing else count.

The data is one element of base64 letters, in which nothing can end or start an element. The policy has the digests of the page's own script and
style, and lets nothing be fetched. Cost: a millisecond. When not to use it: for the page that a server gives out (`routes/page.py`).
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from penstock.config import UserError
from penstock.dashboard.page import INDEX

_SCRIPT = re.compile(r'<script\b[^>]*\bsrc="/?([^"]+)"[^>]*></script>')
_STYLE = re.compile(r'<link\b[^>]*\bhref="/?([^"]+\.css)"[^>]*>')
_LINK = re.compile(r'[ \t]*<link\b[^>]*\bhref="(?!data:)[^"]+"[^>]*>\n?')


def inlined(page: Path, data: bytes) -> str:
    """The page built in a folder, with the data in its element `frozen`; raises `UserError` where the page was not built whole."""
    if not (page / INDEX).is_file():
        raise UserError(f"the page was not built ({page / INDEX} is missing); run `make page` in a checkout, or install a wheel that has it")
    html, root = (page / INDEX).read_text(encoding="utf-8"), page.resolve()
    scripts = [_harmless(_file(root, name)) for name in _SCRIPT.findall(html)]
    styles = [_file(root, name).replace("</", "<\\/") for name in _STYLE.findall(html)]
    html = _LINK.sub("", _SCRIPT.sub("", html))
    policy = (
        f"default-src 'none'; script-src {_digests(scripts)}; style-src {_digests(styles)}; img-src data: blob:; font-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' + "".join(f"<style>{style}</style>" for style in styles)
    frozen = f'<script type="application/octet-stream" id="frozen">{base64.b64encode(data).decode()}</script>'
    tail = frozen + "".join(f'<script type="module">{script}</script>' for script in scripts)
    before, _, after = html.partition("<head>")
    begin, end = after.rsplit("</body>", 1) if "</body>" in after else (after, "")
    return f"{before}<head>{head}{begin}{tail}</body>{end}"


def _file(root: Path, name: str) -> str:
    file = (root / name).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise UserError(f"the page was not built whole: {INDEX} names {name}, which is not there; run `make page`")
    return file.read_text(encoding="utf-8")


def _harmless(script: str) -> str:
    """A script that may stand in HTML: what would end its element only stands in its strings, where a backslash changes nothing."""
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace("<!--", "<\\!--")


def _digests(texts: list[str]) -> str:
    found = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
    return " ".join(found) or "'none'"
