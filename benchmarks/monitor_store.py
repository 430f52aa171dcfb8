"""The store of metrics: what a row costs, how fast rows become columns, how quickly a course is found among 10⁷ points; beside what others do.

300 metrics a step, half of them float32 in origin, the others counts, settings and float64. All in one run on one disk, contestants in turn; figures
are medians, `…_low` and `…_high` the middle half, `load` the machine's load average before and after.
A step's row: `row_us` into a rank's log, beside `tensorboard_ms` (its own writer, as a run uses it) and `sqlite_ms` (a transaction of 300 rows, WAL).
Ingest, from ranks' logs on the disk to flushed chunks in one process: `ingest_1` and `ingest_8` million points a second, of 1 rank and of 8; the aim
is 1. What chose the store, 33,792 steps × 300 = 10⁷ points: `<store>_ingest` (million points a second, packing and writing alone),
`<store>_course_ms` (one metric, all steps), `<store>_bytes` (a point), of `columns` (ours), `parquet` (Zstandard, byte streams split), `arrow` (IPC,
Zstandard), `sqlite` (a row a point) and `sqlite_blobs` (a packed column a row). Queries as a user asks them, log and store together: `query_ms` (one
metric of those 10⁷ points, 1,000 rows), `query_recent_ms` (its last 600 s), `query_30_ms` (30 metrics), `query_long_ms` (a metric of 10⁷ steps).
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zstandard

from benchmarks.timing import take_turns
from penstock.monitor import TensorBoardWriter
from penstock.monitor.series import Bound, Keeper, Kinds, RowLog, Series
from penstock.monitor.series.chunk import About, pack_chunk, unpack_block
from penstock.monitor.series.coarse import Coarser
from penstock.monitor.series.columns import ALL, ColumnReader, ColumnWriter
from penstock.monitor.series.keeper import STORE
from penstock.monitor.series.merge import Generation
from penstock.monitor.series.together import put_together

METRICS, STEPS, CHUNK, LONG = 300, 33_792, 4096, 10_000_000
NAMES = [f"grad_norm/layer.{i:03d}" for i in range(METRICS)]
TURNS = 9
ABOUT = About(tuple(NAMES), (Generation(1, 0, 1),))


def run() -> dict[str, float | str]:
    """Measure all."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures = rows(root / "rows") | ingest(root / "ingest") | choice(root / "choice") | queries(root / "queries")
    return figures | {"load_before": load, "load_after": os.getloadavg()[0]}


def values(steps: int, seed: int = 0) -> np.ndarray:
    """Steps of metrics, float64 [steps, metrics]."""
    draw = np.random.default_rng(seed)
    x = 1 + 0.1 * draw.standard_normal((steps, METRICS))
    x[:, :150] = x[:, :150].astype(np.float32)
    x[:, 150:200] = np.round(100 * x[:, 150:200])
    x[:, 200:230] = 3e-4
    return x


def rows(root: Path) -> dict[str, float | str]:
    """A step's row into a log, TensorBoard and SQLite."""
    root.mkdir()
    log, board, db = RowLog(root, 0, 1, 1, 0), TensorBoardWriter(root / "events"), _sqlite(root / "rows.sqlite")
    log.names(NAMES)
    x, step = values(1)[0], [0]
    named = dict(zip(NAMES, x.tolist()))

    def to_log() -> None:
        step[0] += 1
        log.append(step[0], 1e9, x)

    def to_board() -> None:
        board.write(step[0], named)

    def to_sqlite() -> None:
        with db:
            db.executemany("insert into point values (?, ?, ?, ?)", [(i, step[0], 1e9, v) for i, v in enumerate(x.tolist())])

    turns = take_turns({"row_us": to_log, "tensorboard_ms": to_board, "sqlite_ms": to_sqlite}, 200)
    board.close()
    db.close()
    return _spread("row_us", [1e3 * ms for ms in _ms(turns["row_us"])]) | {
        name: figure for key in ("tensorboard_ms", "sqlite_ms") for name, figure in _spread(key, _ms(turns[key])).items()
    }


def ingest(root: Path) -> dict[str, float | str]:
    """From logs to chunks."""
    figures: dict[str, float | str] = {}
    for ranks, steps in ((1, 8192), (8, 1024)):
        speeds = []
        for turn in range(3):
            folder = root / f"{ranks}-{turn}"
            for rank in range(ranks):
                log = RowLog(folder, rank, ranks, 1, 0)
                log.names(NAMES)
                for step, row in enumerate(values(steps, rank), 1):
                    log.append(step, 1e9 + step, row)
                log.close()
            begin, stored = time.perf_counter(), 0
            with Keeper(folder, Kinds()) as keeper:
                while stored < steps:
                    stored += len(keeper.poll(0.0))
                keeper.store()
            speeds.append(ranks * steps * METRICS / (time.perf_counter() - begin) / 1e6)
        figures |= _spread(f"ingest_{ranks}", speeds)
    return figures


def choice(root: Path) -> dict[str, float | str]:
    """The candidates for the store: how fast they take 10⁷ points, give a metric's, and how large they are."""
    makers: dict[str, tuple[Callable[[Path], None], Callable[[Path], int]]] = {
        "columns": (_write_columns, _read_columns), "parquet": (_write_parquet, _read_parquet), "arrow": (_write_arrow, _read_arrow),
        "sqlite": (_write_sqlite, _read_sqlite), "sqlite_blobs": (_write_blobs, _read_blobs),
    }  # fmt: skip
    figures: dict[str, float | str] = {}
    for name, (write, _) in makers.items():
        (root / name).mkdir(parents=True)
        begin = time.perf_counter()
        write(root / name)
        figures[f"{name}_ingest"] = STEPS * METRICS / (time.perf_counter() - begin) / 1e6
        figures[f"{name}_bytes"] = sum(path.stat().st_size for path in (root / name).iterdir()) / (STEPS * METRICS)
    readers = {name: _reading(read, root / name) for name, (_, read) in makers.items()}
    for name, seconds in take_turns(readers, TURNS).items():
        figures |= _spread(f"{name}_course_ms", _ms(seconds))
    return figures


def queries(root: Path) -> dict[str, float | str]:
    """What a user waits for."""
    usual, long = root / "usual", root / "long"
    _write_columns(usual / STORE)
    log = RowLog(usual, 0, 1, 1, 0)
    log.names(NAMES)
    for step, row in enumerate(values(1000), STEPS):
        log.append(step, 1e9 + step / 10, row)
    writer, course = ColumnWriter(long / STORE), np.random.default_rng(0).standard_normal(LONG)
    for begin in range(0, LONG, 1 << 14):
        part = course[begin : begin + (1 << 14), None]
        writer.append(_packed(About((NAMES[0],), ABOUT.generations), begin, part))
    for store in (usual / STORE, long / STORE):
        Coarser(store).catch_up(store, ALL)

    def ask(folder: Path, names: list[str], since: Bound = Bound()) -> Callable[[], None]:
        def query() -> None:
            series = Series(folder, Kinds())
            assert all(len(course.steps) for course in series.courses(names, since, points=1000))
            series.close()

        return query

    asked = {
        "query_ms": ask(usual, NAMES[100:101]), "query_recent_ms": ask(usual, NAMES[100:101], Bound(seconds=600)),
        "query_30_ms": ask(usual, NAMES[:30]), "query_long_ms": ask(long, NAMES[:1]),
    }  # fmt: skip
    figures: dict[str, float | str] = {}
    for name, seconds in take_turns(asked, TURNS).items():
        figures |= _spread(name, _ms(seconds))
    return figures


def _blocks() -> Iterator[tuple[int, np.ndarray]]:
    for begin in range(0, STEPS, CHUNK):
        yield begin, values(min(CHUNK, STEPS - begin), begin)


def _packed(about: About, begin: int, x: np.ndarray) -> bytes:
    steps = np.arange(begin, begin + len(x))
    return pack_chunk(about, np.ones(len(x), np.int64), steps, 1e9 + steps / 10, put_together(x[:, None], [0], ["spread"] * x.shape[1]))


def _write_columns(folder: Path) -> None:
    writer = ColumnWriter(folder)
    for begin, x in _blocks():
        writer.append(_packed(ABOUT, begin, x))
    writer.close()


def _read_columns(folder: Path) -> int:
    reader = ColumnReader(folder)
    found = [(reader.keys(chunk), reader.five(chunk, NAMES[100])) for chunk in reader.chunks]
    reader.close()
    return sum(len(five[0]) for _, five in found if five is not None)


def _table(begin: int, x: np.ndarray) -> object:
    import pyarrow

    steps = np.arange(begin, begin + len(x))
    return pyarrow.table({"step": steps, "time": 1e9 + steps / 10} | {name: np.ascontiguousarray(x[:, i]) for i, name in enumerate(NAMES)})


def _write_parquet(folder: Path) -> None:
    from pyarrow import parquet

    for begin, x in _blocks():
        path = folder / f"{begin:08d}"
        parquet.write_table(_table(begin, x), path, compression="zstd", compression_level=1, use_dictionary=False, use_byte_stream_split=NAMES)
        _flush(path)


def _read_parquet(folder: Path) -> int:
    from pyarrow import parquet

    return sum(parquet.ParquetFile(path).read(columns=["step", "time", NAMES[100]]).num_rows for path in sorted(folder.iterdir()))


def _write_arrow(folder: Path) -> None:
    from pyarrow import feather

    for begin, x in _blocks():
        feather.write_feather(_table(begin, x), str(folder / f"{begin:08d}"), compression="zstd", compression_level=1)
        _flush(folder / f"{begin:08d}")


def _read_arrow(folder: Path) -> int:
    from pyarrow import feather

    paths = sorted(folder.iterdir())
    return sum(feather.read_table(str(path), columns=["step", "time", NAMES[100]], memory_map=True).num_rows for path in paths)


def _write_sqlite(folder: Path) -> None:
    db = _sqlite(folder / "points")
    for begin, x in _blocks():
        with db:
            db.executemany(
                "insert into point values (?, ?, ?, ?)",
                ((i, begin + row, 1e9 + (begin + row) / 10, value) for i in range(METRICS) for row, value in enumerate(x[:, i].tolist())),
            )
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()


def _read_sqlite(folder: Path) -> int:
    db = sqlite3.connect(folder / "points")
    found = np.array(db.execute("select step, time, value from point where metric = 100 order by step").fetchall())
    db.close()
    return len(found)


def _write_blobs(folder: Path) -> None:
    db, packer = sqlite3.connect(folder / "blobs"), zstandard.ZstdCompressor(level=1)
    db.execute("pragma journal_mode = wal")
    db.execute("create table block (metric int, begin int, data blob, primary key (metric, begin)) without rowid")
    for begin, x in _blocks():
        steps = np.arange(begin, begin + len(x))
        columns = {-2: steps, -1: 1e9 + steps / 10} | {i: np.ascontiguousarray(x[:, i]) for i in range(METRICS)}
        with db:
            split = ((i, begin, column.view(np.uint8).reshape(-1, 8).T.tobytes()) for i, column in columns.items())
            db.executemany("insert into block values (?, ?, ?)", ((i, at, packer.compress(plain)) for i, at, plain in split))
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()


def _read_blobs(folder: Path) -> int:
    db, found = sqlite3.connect(folder / "blobs"), []
    for metric in (-2, -1, 100):
        blocks = db.execute("select begin, data from block where metric = ? order by begin", (metric,))
        found.append(np.concatenate([unpack_block(data, min(CHUNK, STEPS - begin), "<f8") for begin, data in blocks]))
    db.close()
    return len(found[-1])


def _sqlite(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    db.execute("create table point (metric int, step int, time real, value real, primary key (metric, step)) without rowid")
    return db


def _reading(read: Callable[[Path], int], folder: Path) -> Callable[[], None]:
    def work() -> None:
        found = read(folder)
        assert found == STEPS, f"{folder} gave {found} rows"

    return work


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _ms(seconds: list[float]) -> list[float]:
    return [1e3 * value for value in seconds]


def _spread(name: str, figures: list[float]) -> dict[str, float | str]:
    """Median and middle half."""
    low, middle, high = statistics.quantiles(figures, n=4)
    return {name: middle, f"{name}_low": low, f"{name}_high": high}
