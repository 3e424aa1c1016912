"""COPY through a server: object stores, large loads, and what a server refuses."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="module")
def store():
    """An object store with an empty bucket `exports`; the variables that name it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    import boto3

    client = boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT"], aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    for bucket in ["exports", "private"]:
        client.create_bucket(Bucket=bucket)
    yield env, client
    server.stop()


def test_copy_to_and_from_an_object_store(start, store):
    env, client = store
    server = start(env={**env, "HYPRSTREAM_COPY_ALLOWED_PATHS": "s3://exports/"})
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE big AS SELECT value AS id, md5(value::TEXT) AS name FROM generate_series(1, 300000)")
        # Larger than one part of an upload.
        for name in ["a.parquet", "a.csv", "a.json", "a.arrow"]:
            cursor.execute(f"COPY big TO 's3://exports/all/{name}'")
            cursor.execute("CREATE TABLE back (id BIGINT, name TEXT)")
            cursor.execute(f"COPY back FROM 's3://exports/all/{name}'")
            cursor.execute("SELECT count(*) FROM back JOIN big USING (id, name)")
            assert cursor.fetchall() == [(300000,)], name
            cursor.execute("DROP TABLE back")
        keys = sorted(found["Key"] for found in client.list_objects_v2(Bucket="exports")["Contents"])
        assert keys == ["all/a.arrow", "all/a.csv", "all/a.json", "all/a.parquet"]
        cursor.execute("CREATE TABLE parts (id BIGINT, name TEXT)")
        cursor.execute("COPY (SELECT * FROM big WHERE id <= 10) TO 's3://exports/parts/1.parquet'")
        cursor.execute("COPY (SELECT * FROM big WHERE id > 10 AND id <= 15) TO 's3://exports/parts/2.parquet'")
        cursor.execute("COPY parts FROM 's3://exports/parts/*.parquet'")
        cursor.execute("SELECT count(*) FROM parts")
        assert cursor.fetchall() == [(15,)]
        for sql, message in [
            ("COPY big TO 's3://private/a.csv'", "copy.allowed_paths"),
            ("COPY big FROM 's3://exports/none.csv'", "does not exist"),
            ("COPY big TO '/tmp/leak.csv'", "copy.allowed_paths"),
        ]:
            with pytest.raises(Exception, match=message):
                cursor.execute(sql)
        assert "Contents" not in client.list_objects_v2(Bucket="private")


def test_a_large_file_is_all_or_nothing_and_survives_a_kill(start, data_dir, tmp_path):
    rows = 200_000
    body = ["x" * 500] * rows
    pq.write_table(pa.table({"id": pa.array(range(rows)), "body": body}), tmp_path / "good.parquet")
    pq.write_table(pa.table({"id": pa.array([*range(rows - 1), 0]), "body": body}), tmp_path / "twice.parquet")
    allowed = {"HYPRSTREAM_COPY_ALLOWED_PATHS": str(tmp_path)}
    server = start(env=allowed)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE big (id BIGINT PRIMARY KEY, body TEXT)")
        with pytest.raises(Exception, match=r"holds key \(id\) = \(0\) twice"):
            cursor.execute(f"COPY big FROM '{tmp_path}/twice.parquet'")
        cursor.execute("SELECT count(*) FROM big")
        assert cursor.fetchall() == [(0,)]
        cursor.execute(f"COPY big FROM '{tmp_path}/good.parquet'")
    log = sum(file.stat().st_size for file in (data_dir / "wal").iterdir())
    assert log < 10 << 20, f"{log} bytes of log after a load of 100 MB"
    server.kill()
    with start().connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), count(DISTINCT id), sum(octet_length(body)) FROM big")
        assert cursor.fetchall() == [(rows, rows, rows * 500)]
