"""The directory of a table as stock readers of the Lance format see it, while the server runs."""

import json

import duckdb
import lance
import lancedb
import pytest


def dataset_of(data_dir):
    [directory] = [path for path in (data_dir / "tables").iterdir() if (path / "_versions").exists()]
    return directory


@pytest.fixture
def served(start, data_dir):
    """A server whose table `notes` has a tag, an update and a deletion after it, all flushed."""
    server = start()
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE notes (id INT PRIMARY KEY, body TEXT, v VECTOR(2), meta JSONB)")
        cursor.execute("""INSERT INTO notes VALUES (1, 'one', ARRAY[1, 0], '{"a": 1}'), (2, 'two', ARRAY[0, 1], NULL)""")
        cursor.execute("ALTER TABLE notes CREATE TAG first")
        cursor.execute("UPDATE notes SET body = 'TWO' WHERE id = 2")
        cursor.execute("DELETE FROM notes WHERE id = 1")
        cursor.execute("INSERT INTO notes VALUES (3, 'three', ARRAY[0.5, 0.5], NULL)")
        cursor.execute("ALTER TABLE notes CREATE TAG second")
    return dataset_of(data_dir)


def test_lance_reads_rows_versions_and_tags(served):
    dataset = lance.dataset(str(served))
    rows = sorted(dataset.to_table(columns=["id", "body"]).to_pylist(), key=lambda row: row["id"])
    assert rows == [{"id": 2, "body": "TWO"}, {"id": 3, "body": "three"}]
    tags = dataset.tags.list()
    assert set(tags) == {"first", "second"}
    old = dataset.checkout_version("first")
    assert sorted(old.to_table().column("body").to_pylist()) == ["one", "two"]
    assert [json.loads(meta) for meta in old.to_table().column("meta").to_pylist() if meta] == [{"a": 1}]
    assert len(dataset.versions()) >= 2
    near = dataset.to_table(nearest={"column": "v", "q": [0.0, 1.0], "k": 1}, columns=["id"])
    assert near.column("id").to_pylist() == [2]


def test_lancedb_opens_the_directory_as_a_table(served, tmp_path):
    # lancedb finds tables by the name of their directory.
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "notes.lance").symlink_to(served)
    table = lancedb.connect(tmp_path / "db").open_table("notes")
    assert table.count_rows() == 2
    found = table.search([0.0, 1.0], vector_column_name="v").limit(1).to_list()
    assert found[0]["body"] == "TWO"


def test_duckdb_queries_it_through_arrow(served):
    notes = lance.dataset(str(served))
    found = duckdb.sql("SELECT count(*), max(body) FROM notes WHERE id > 1").fetchall()
    assert found == [(2, "three")], notes.uri
