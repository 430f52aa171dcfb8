"""Which text a `data.path` stands for, and what is said where it cannot be read."""

import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import data_section, random_text

from penstock.config import UserError
from penstock.data import prepare, text_stream
from penstock.data.tokenizer import Bytes


def whole_text(path, tmp_path, **changes):
    """All text of a corpus, documents separated by a bar."""
    stream, _ = text_stream(data_section(path, tmp_path / "cache", **changes), Bytes())
    ids = stream.read(0, len(stream)).tolist()
    return bytes(124 if i == 256 else i for i in ids).decode()


def refusal(path, tmp_path, **changes):
    with pytest.raises(UserError) as caught:
        prepare(data_section(path, tmp_path / "cache", **changes))
    return str(caught.value)


def test_a_folder_is_read_recursively_in_order_without_hidden_and_binary_files(tmp_path):
    root = tmp_path / "books"
    for name in ("b.md", "a/z.txt", "a/code.py", "Makefile", ".hidden/x.txt", ".secret.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"<{name}>")
    (root / "picture.bin").write_bytes(b"\x89PNG\0\xff\xfe" * 30)
    (root / "void.txt").touch()
    assert whole_text(root, tmp_path) == "<Makefile>|<a/code.py>|<a/z.txt>|<b.md>|"
    summary = prepare(data_section(root, tmp_path / "cache")).summary
    assert (summary["skipped_binary"], summary["skipped_empty"], summary["documents"]) == (1, 1, 4)


def test_a_glob_takes_matching_files_and_folders(tmp_path):
    for name in ("one/a.txt", "two/b.txt", "three.txt", "four.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert whole_text(tmp_path / "t*", tmp_path) == "three.txt|two/b.txt|"
    assert whole_text(tmp_path / "**/*.txt", tmp_path) == "one/a.txt|three.txt|two/b.txt|"


def test_jsonl_and_parquet_rows_are_documents(tmp_path):
    rows = ["first", "", "zweites Stück", "third\nwith a line"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": i, "body": row}) for i, row in enumerate(rows)) + "\n\n")
    pq.write_table(pa.table({"body": [*rows, None]}), tmp_path / "b.parquet", row_group_size=2)
    expected = "first|zweites Stück|third\nwith a line|"
    assert whole_text(tmp_path / "a.jsonl", tmp_path, text_field="body") == expected
    assert whole_text(tmp_path / "b.parquet", tmp_path, text_field="body") == expected


def test_a_location_names_file_and_line_or_row(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"text": "aa"}\n\n{"text": "bb"}\n')
    pq.write_table(pa.table({"text": ["cc", "dd"]}), tmp_path / "in/b.parquet")
    (tmp_path / "in/c.txt").write_text("ee")
    stream, _ = text_stream(data_section(tmp_path / "in", tmp_path / "cache"), Bytes())
    places = [stream.locate(token) for token in (0, 3, 8, 9, 12)]
    assert "a.jsonl, line 1 " in places[0] and "a.jsonl, line 3 " in places[1]
    assert "b.parquet, row 0 " in places[2] and "b.parquet, row 1 " in places[3] and "c.txt" in places[4]


def test_lines_are_numbered_across_spans(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.data.spans.SPAN_BYTES", 2000)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"<{n}>" + "x" * (n % 50)}) + "\n" for n in range(1, 400)))
    stream, _ = text_stream(data_section(tmp_path / "a.jsonl", tmp_path / "cache"), Bytes())
    assert len(stream._shards) > 5 and stream.n_documents == 399
    for document, start in enumerate(stream._starts.tolist()):
        assert f", line {document + 1} " in stream.locate(start)
        assert bytes(stream.read(start, 3).tolist()).startswith(f"<{document + 1}"[:3].encode())


def test_the_standard_library_is_a_corpus_every_machine_has(tmp_path):
    text = whole_text("stdlib", tmp_path, max_bytes=400_000)
    assert 350_000 < len(text.encode()) <= 401_000 and "def __init__(self" in text and "site-packages/" not in text.split("|")[0]


def test_max_bytes_keeps_the_beginning_up_to_a_line_end(tmp_path):
    text = random_text(20_000, seed=1)
    (tmp_path / "a.txt").write_text(text)
    kept = whole_text(tmp_path / "a.txt", tmp_path, max_bytes=7000)
    assert 6500 < len(kept.encode()) <= 7001 and text.startswith(kept[:-1]) and kept.endswith("\n|")


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert whole_text(tmp_path / "a.txt", tmp_path) == "hello|"


def test_missing_path_names_the_nearest(tmp_path):
    (tmp_path / "books").mkdir()
    message = refusal(tmp_path / "boks", tmp_path)
    assert "does not exist" in message and "did you mean 'books'?" in message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert f"{name} is empty" in refusal(tmp_path / name, tmp_path)


def test_a_folder_or_glob_without_text_is_refused_with_what_was_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.bin").write_bytes(b"\0\1\2")
    (tmp_path / "in/y.txt").touch()
    assert "1 empty and 1 binary files" in refusal(tmp_path / "in", tmp_path)
    assert "does not exist" in refusal(tmp_path / "nothing", tmp_path)
    assert "holds no text" in refusal(tmp_path / "in" / "*.md", tmp_path)


@pytest.mark.parametrize("name, before", [("a.txt", b"fine \xc3\xa9 text\n" * 9000), ("a.jsonl", b'{"text": "fine"}\n' * 3)])
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(tmp_path, name, before):
    (tmp_path / name).write_bytes(before + (b"caf\xe9 \n" if name == "a.txt" else b'{"text": "caf\xe9"}\n') + before)
    offset = (before + b'{"text": "caf\xe9"}').index(b"\xe9") if name == "a.jsonl" else len(before) + 3
    message = refusal(tmp_path / name, tmp_path)
    assert f"{name} is not UTF-8 text: byte 0xe9 at offset {offset};" in message and "iconv" in message


@pytest.mark.parametrize(
    "line, complaint",
    [
        ('{"text": "x"', "not valid JSON"),
        ('["x"]', "a list, not an object"),
        ('{"body": "x"}', "no field 'text'; set data.text_field to one of its fields: 'body'"),
        ('{"text": 3}', "holds 3, not text"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_jsonl_line_is_refused_with_its_number(tmp_path, monkeypatch, line, complaint):
    monkeypatch.setattr("penstock.data.spans.SPAN_BYTES", 500)
    (tmp_path / "a.jsonl").write_text('{"text": "good line"}\n' * 100 + line + "\n")
    message = refusal(tmp_path / "a.jsonl", tmp_path)
    assert "a.jsonl, line 101: " in message and complaint in message


def test_parquet_without_the_column_or_with_another_type_or_damaged_is_refused(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    assert "no column 'text'; set data.text_field to one of body, n" in refusal(tmp_path / "a.parquet", tmp_path)
    assert "holds int64, not text" in refusal(tmp_path / "a.parquet", tmp_path, text_field="n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    assert "not a readable Parquet file" in refusal(tmp_path / "b.parquet", tmp_path)


def test_unwritable_cache_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        prepare(data_section(tmp_path / "a.txt", tmp_path / "file" / "cache"))


def test_a_hub_dataset_needs_its_package_and_is_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install penstock[hub]" in refusal("hf:org/name", tmp_path)
    fetched = []

    def load_dataset(name, config, split):
        fetched.append((name, config, split))
        table = pa.table({"text": ["one", "two"], "url": ["a", "b"]})

        def select_columns(names):
            return SimpleNamespace(to_parquet=lambda file: pq.write_table(table.select(names), file))

        return SimpleNamespace(column_names=table.column_names, select_columns=select_columns)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert whole_text("hf:org/name:test", tmp_path) == whole_text("hf:org/name:test", tmp_path) == "one|two|"
    assert fetched == [("org/name", None, "test")]
    assert whole_text("hf:org/name:en:test", tmp_path) == "one|two|" and fetched[-1] == ("org/name", "en", "test")
    assert "no column 'body'" in refusal("hf:org/name", tmp_path, text_field="body")
