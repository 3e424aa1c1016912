"""The stock ADBC driver against the real server: what a Python user does on the first day."""

import json
import pathlib
import subprocess

import adbc_driver_manager
import pyarrow as pa
import pytest
from conftest import binary


def fetch(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    return cursor.fetchall()


def table(cursor, sql, parameters=None) -> pa.Table:
    cursor.execute(sql, parameters)
    return cursor.fetch_arrow_table()


# --- statements ---


def test_ddl_and_dml(cursor):
    cursor.execute("CREATE TABLE ddl (id INT PRIMARY KEY, name TEXT NOT NULL, score DOUBLE)")
    cursor.execute("INSERT INTO ddl VALUES (1, 'a', 0.5), (2, 'b', NULL)")
    assert cursor.rowcount == 2
    cursor.execute("UPDATE ddl SET score = 1.5 WHERE name = 'b'")
    assert cursor.rowcount == 1
    assert fetch(cursor, "SELECT id, name, score FROM ddl ORDER BY id") == [(1, "a", 0.5), (2, "b", 1.5)]
    cursor.execute("DELETE FROM ddl WHERE id = 1")
    assert cursor.rowcount == 1
    assert fetch(cursor, "SELECT count(*) FROM ddl") == [(1,)]
    cursor.execute("DROP TABLE ddl")
    with pytest.raises(adbc_driver_manager.Error, match="ddl"):
        cursor.execute("SELECT * FROM ddl")


def test_update_is_done_when_execute_returns(server):
    with server.connect() as one, server.connect() as two, one.cursor() as writer, two.cursor() as reader:
        writer.execute("CREATE TABLE at_once (id INT)")
        for number in range(1, 6):
            writer.execute(f"INSERT INTO at_once VALUES ({number})")
            assert fetch(reader, "SELECT count(*) FROM at_once") == [(number,)]


def test_executemany_of_every_type(cursor):
    cursor.execute("CREATE TABLE many (id INT PRIMARY KEY, name TEXT, v VECTOR(4), image BLOB, meta JSONB, ok BOOLEAN)")
    rows = [
        (i, f"row {i}", [i + 0.5, 1.0, -2.0, 0.0], bytes([i % 256, 0, 255]), json.dumps({"i": i, "tag": f"t{i % 3}"}), i % 2 == 0)
        for i in range(500)
    ]
    cursor.executemany("INSERT INTO many VALUES (?, ?, ?, ?, ?, ?)", rows)
    assert cursor.rowcount == 500
    found = fetch(cursor, "SELECT id, name, v, image, meta, ok FROM many ORDER BY id")
    assert len(found) == 500
    for given, got in zip(rows, found):
        assert got[:2] == given[:2]
        assert got[2] == pytest.approx(given[2])
        assert got[3] == given[3]
        assert json.loads(got[4]) == json.loads(given[4])
        assert got[5] == given[5]
    assert fetch(cursor, "SELECT count(*) FROM many WHERE meta ->> 'tag' = 't1'") == [(167,)]


def test_executemany_stores_nulls(cursor):
    cursor.execute("CREATE TABLE nulls (id INT, name TEXT)")
    cursor.executemany("INSERT INTO nulls VALUES (?, ?)", [(1, None), (None, "b")])
    assert fetch(cursor, "SELECT id, name FROM nulls ORDER BY id NULLS LAST") == [(1, None), (None, "b")]


def test_executemany_is_one_commit(cursor):
    cursor.execute("CREATE TABLE all_or_none (id INT PRIMARY KEY)")
    with pytest.raises(adbc_driver_manager.Error):
        cursor.executemany("INSERT INTO all_or_none VALUES (?)", [(1,), (2,), (1,)])
    assert fetch(cursor, "SELECT count(*) FROM all_or_none") == [(0,)]


def test_parametrised_select(cursor):
    cursor.execute("CREATE TABLE params (id INT, name TEXT, v VECTOR(2))")
    cursor.execute("INSERT INTO params VALUES (1, 'a', [1.0, 0.0]), (2, 'b', [0.0, 1.0]), (3, 'c', [1.0, 1.0])")
    assert fetch(cursor, "SELECT name FROM params WHERE id = ?", (2,)) == [("b",)]
    assert fetch(cursor, "SELECT id FROM params WHERE name = $1 OR id = $2 ORDER BY id", ("a", 3)) == [(1,), (3,)]
    nearest = fetch(cursor, "SELECT name FROM params ORDER BY cosine_distance(v, ?) LIMIT 1", ([0.1, 0.9],))
    assert nearest == [("b",)]
    cursor.execute("DELETE FROM params WHERE id = ?", (1,))
    assert cursor.rowcount == 1


def test_a_result_has_the_types_of_what_is_bound(cursor):
    assert fetch(cursor, "SELECT ? AS v", ("x",)) == [("x",)]
    assert fetch(cursor, "SELECT ? AS v", (1.5,)) == [(1.5,)]
    assert fetch(cursor, "SELECT ? + 1 AS v", (1.5,)) == [(2.5,)]


def test_result_types(cursor):
    result = table(cursor, "SELECT 1 AS i, 1.5 AS d, 'x' AS t, TRUE AS b, NULL AS n, DATE '2024-02-29' AS day")
    assert result.schema.field("i").type == pa.int64()
    assert result.schema.field("t").type == pa.string()
    assert result.schema.field("day").type == pa.date32()
    assert result.num_rows == 1


def test_a_million_rows_stream(cursor):
    cursor.execute("SELECT value AS id, value * 2 AS twice, 'row ' || CAST(value AS TEXT) AS name FROM generate_series(1, 1000000)")
    reader = cursor.fetch_record_batch()
    rows = total = batches = 0
    for batch in reader:
        batches += 1
        rows += batch.num_rows
        total += pa.compute.sum(batch.column("twice")).as_py()
    assert (rows, total) == (1_000_000, 1_000_001_000_000)
    assert batches > 10


def test_a_query_that_is_not_read_to_its_end_stops(server):
    with server.connect() as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT value FROM generate_series(1, 100000000000)")
            assert cursor.fetchone() == (1,)
        with connection.cursor() as cursor:
            assert fetch(cursor, "SELECT 1") == [(1,)]


def test_cancel(server):
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM generate_series(1, 100000000000)")
        cursor.fetchone()
        cursor.adbc_cancel()
        with pytest.raises(adbc_driver_manager.Error, match="(?i)cancel"):
            cursor.fetchallarrow()


def test_prepared_schema_without_running(cursor):
    schema = cursor.adbc_prepare("SELECT CAST(? AS BIGINT) + 1")
    assert schema is None or len(schema) == 1
    assert cursor.adbc_execute_schema("SELECT 1 AS one, 'a' AS letter").names == ["one", "letter"]


# --- bulk ingestion ---


def vectors(count, dimension=8) -> pa.Table:
    values = pa.array([float(i % 97) for i in range(count * dimension)], pa.float32())
    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "name": pa.array([f"row {i}" for i in range(count)]),
            "v": pa.FixedSizeListArray.from_arrays(values, dimension),
            "blob": pa.array([bytes([i % 256]) * 3 for i in range(count)], pa.binary()),
        }
    )


def test_ingest_create_append_replace(cursor):
    data = vectors(10_000)
    assert cursor.adbc_ingest("bulk", data, mode="create") == 10_000
    with pytest.raises(adbc_driver_manager.Error, match="bulk"):
        cursor.adbc_ingest("bulk", data, mode="create")
    assert cursor.adbc_ingest("bulk", data.slice(0, 10), mode="append") == 10
    assert cursor.adbc_ingest("bulk", data.slice(0, 5), mode="create_append") == 5
    assert fetch(cursor, "SELECT count(*), max(id) FROM bulk") == [(10_015, 9_999)]
    got = table(cursor, "SELECT * FROM bulk WHERE id = 4321")
    assert got.column("v").to_pylist() == data.slice(4321, 1).column("v").to_pylist()
    assert got.column("blob").to_pylist() == data.slice(4321, 1).column("blob").to_pylist()
    assert cursor.adbc_ingest("bulk", data.slice(0, 3), mode="replace") == 3
    assert fetch(cursor, "SELECT count(*) FROM bulk") == [(3,)]
    with pytest.raises(adbc_driver_manager.Error, match="missing"):
        cursor.adbc_ingest("missing", data, mode="append")


def test_ingest_into_a_declared_table(cursor):
    cursor.execute("CREATE TABLE declared (id INT PRIMARY KEY, name TEXT, v VECTOR(8), blob BLOB)")
    assert cursor.adbc_ingest("declared", vectors(100), mode="append") == 100
    with pytest.raises(adbc_driver_manager.Error):
        cursor.adbc_ingest("declared", vectors(1), mode="append")
    with pytest.raises(adbc_driver_manager.Error, match="(?i)dimension|vector"):
        cursor.adbc_ingest("declared", vectors(200, dimension=4).slice(150), mode="append")
    assert fetch(cursor, "SELECT count(*) FROM declared") == [(100,)]


def test_ingest_a_stream_of_a_million_rows(cursor):
    schema = pa.schema([("id", pa.int64()), ("half", pa.float64())])

    def batches():
        for start in range(0, 1_000_000, 50_000):
            ids = list(range(start, start + 50_000))
            yield pa.record_batch([pa.array(ids), pa.array([i / 2 for i in ids])], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    assert cursor.adbc_ingest("million", reader, mode="create") == 1_000_000
    assert fetch(cursor, "SELECT count(DISTINCT id), sum(half) FROM million") == [(1_000_000, 249_999_750_000.0)]


# --- metadata ---


@pytest.fixture(scope="module")
def catalog(server):
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE shelf (room INT, row INT, title TEXT NOT NULL, v VECTOR(3), PRIMARY KEY (room, row))")
    return server


def objects(connection, **kwargs):
    return connection.adbc_get_objects(**kwargs).read_all().to_pylist()


def test_get_objects_by_depth(catalog):
    with catalog.connect() as connection:
        [found] = objects(connection, depth="catalogs")
        assert found["catalog_name"] == "hyprstream"
        assert not found["catalog_db_schemas"]
        [found] = objects(connection, depth="db_schemas")
        names = [schema["db_schema_name"] for schema in found["catalog_db_schemas"]]
        assert "public" in names
        [found] = objects(connection, depth="tables", db_schema_filter="public", table_name_filter="she%")
        [schema] = found["catalog_db_schemas"]
        [listed] = schema["db_schema_tables"]
        assert (listed["table_name"], listed["table_type"]) == ("shelf", "TABLE")


def test_get_objects_columns_and_constraints(catalog):
    with catalog.connect() as connection:
        [found] = objects(connection, depth="all", table_name_filter="shelf")
        tables = [t for s in found["catalog_db_schemas"] for t in s["db_schema_tables"]]
        [shelf] = tables
        columns = {column["column_name"]: column for column in shelf["table_columns"]}
        assert list(columns) == ["room", "row", "title", "v"]
        assert columns["title"]["ordinal_position"] == 3
        assert columns["v"]["xdbc_type_name"] == "VECTOR(3)"


def test_get_table_schema(catalog):
    with catalog.connect() as connection:
        schema = connection.adbc_get_table_schema("shelf")
        assert schema.names == ["room", "row", "title", "v"]
        assert schema.field("v").type == pa.list_(pa.float32(), 3)
        assert not schema.field("title").nullable
        with pytest.raises(adbc_driver_manager.Error):
            connection.adbc_get_table_schema("nowhere")


def test_get_table_types_and_info(catalog):
    with catalog.connect() as connection:
        assert "TABLE" in connection.adbc_get_table_types()
        info = connection.adbc_get_info()
        assert info["vendor_name"] == "Hyprstream"
        assert info["vendor_version"]


# --- errors ---


@pytest.mark.parametrize(
    ("sql", "error", "text"),
    [
        ("SELEC 1", adbc_driver_manager.ProgrammingError, "line 1"),
        ("SELECT * FROM nowhere", adbc_driver_manager.ProgrammingError, "nowhere"),
        ("SELECT titel FROM shelf", adbc_driver_manager.ProgrammingError, "title"),
        ("INSERT INTO shelf VALUES (1, 1, NULL, NULL)", adbc_driver_manager.Error, "title.*NOT NULL"),
        ("INSERT INTO shelf VALUES (1, 1, 'a', [1.0, 2.0])", adbc_driver_manager.Error, "3"),
    ],
)
def test_errors_name_what_is_wrong(catalog, sql, error, text):
    with catalog.connect() as connection, connection.cursor() as cursor:
        with pytest.raises(error, match=text):
            fetch(cursor, sql)
        assert fetch(cursor, "SELECT 1") == [(1,)]


def test_duplicate_key(cursor):
    cursor.execute("CREATE TABLE keyed (id INT PRIMARY KEY)")
    cursor.execute("INSERT INTO keyed VALUES (7)")
    with pytest.raises(adbc_driver_manager.Error, match="7"):
        cursor.execute("INSERT INTO keyed VALUES (7)")


# --- models ---


def test_a_whole_model_passes_the_stock_client(start, data_dir, smollm2):
    subprocess.run(
        [binary(), "model", "import", "--name", "smollm2", "--data-dir", str(data_dir), str(smollm2)], check=True
    )
    with start().connect() as connection, connection.cursor() as cursor:
        [(parameters,)] = fetch(cursor, "SELECT total_parameters FROM model_metadata WHERE model_id = 'smollm2'")
        assert 130_000_000 < parameters < 140_000_000
        cursor.execute("SELECT * FROM model_weights")
        pieces = weight_bytes = 0
        for batch in cursor.fetch_record_batch():
            pieces += batch.num_rows
            weight_bytes += sum(len(data.as_buffer()) for data in batch.column("weight_data"))
        assert pieces >= 272
        assert weight_bytes > 0.9 * pathlib.Path(smollm2).stat().st_size
        rows = fetch(
            cursor,
            "SELECT layer_id, parameter_name FROM model_weights WHERE model_id = 'smollm2' AND layer_id BETWEEN 0 AND 3",
        )
        assert {layer for layer, _ in rows} == {0, 1, 2, 3}


# --- life of a server ---


def test_sigterm_keeps_everything(start):
    server = start()
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (id INT PRIMARY KEY, name TEXT)")
        cursor.executemany("INSERT INTO kept VALUES (?, ?)", [(i, f"row {i}") for i in range(1000)])
    assert server.stop() == 0, server.log.read_text()
    assert not (server.data_dir / "server.json").exists()
    with start().connect() as connection, connection.cursor() as cursor:
        assert fetch(cursor, "SELECT count(*), count(DISTINCT name) FROM kept") == [(1000, 1000)]


def test_a_killed_server_loses_nothing_acknowledged(start):
    server = start()
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (id INT PRIMARY KEY)")
        cursor.executemany("INSERT INTO kept VALUES (?)", [(i,) for i in range(100)])
    server.kill()
    with start().connect() as connection, connection.cursor() as cursor:
        assert fetch(cursor, "SELECT count(*), max(id) FROM kept") == [(100, 99)]


def test_a_second_server_is_refused(start, data_dir):
    server = start()
    second = subprocess.run(
        [binary(), "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode != 0
    assert second.stdout == ""
    assert str(server.process.pid) in second.stderr and server.address in second.stderr
