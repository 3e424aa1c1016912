"""Transactions and sessions through the stock ADBC driver, as its own validation suite tries them."""

import threading

import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions

COOKIES = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}


def fetch(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def run(connection, sql, parameters=None) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.rowcount


def test_autocommit_can_be_switched(server):
    with server.connect() as connection:
        connection.adbc_connection.set_autocommit(False)
        run(connection, "CREATE TABLE switched (id INT)")
        # DBAPI's own `rollback` does nothing on a connection that was opened with autocommit.
        connection.adbc_connection.rollback()
        with pytest.raises(adbc_driver_manager.ProgrammingError, match="switched"):
            fetch(connection, "SELECT * FROM switched")
        run(connection, "CREATE TABLE switched (id INT)")
        # Switching back commits.
        connection.adbc_connection.set_autocommit(True)
        run(connection, "INSERT INTO switched VALUES (1)")
    with server.connect() as connection:
        assert fetch(connection, "SELECT id FROM switched") == [(1,)]


def test_ingest_commits_at_once_where_the_driver_names_no_transaction(server):
    """Driver 1.13 sends a bulk ingest without its transaction, so it is not part of one."""
    data = pa.table({"ints": pa.array([1, 2, None], pa.int64()), "strs": ["a", None, "c"]})
    with server.begin() as one, server.connect() as two:
        with one.cursor() as cursor:
            assert cursor.adbc_ingest("validated", data, mode="create") == 3
        assert fetch(two, "SELECT count(*), count(ints) FROM validated") == [(3, 2)]
        one.rollback()
        assert fetch(two, "SELECT count(*), count(ints) FROM validated") == [(3, 2)]


def test_the_default_connection_of_dbapi(server):
    with server.begin() as connection:
        run(connection, "CREATE TABLE plain (id INT PRIMARY KEY, name TEXT)")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO plain VALUES (?, ?)", [(i, f"row {i}") for i in range(10)])
        connection.commit()
        # The same statement on one cursor over several commits: the driver prepares it once.
        with connection.cursor() as cursor:
            for number in range(10, 15):
                cursor.execute("INSERT INTO plain VALUES (?, 'more')", (number,))
                connection.commit()
            cursor.execute("INSERT INTO plain VALUES (?, 'more')", (99,))
            connection.rollback()
            cursor.execute("SELECT count(*), max(id) FROM plain")
            assert cursor.fetchall() == [(15, 14)]
        run(connection, "DELETE FROM plain")
    # Closed without a commit.
    with server.connect() as connection:
        assert fetch(connection, "SELECT count(*) FROM plain") == [(15,)]


def test_the_second_of_two_changes_of_a_row_is_refused(server):
    with server.connect() as connection:
        run(connection, "CREATE TABLE contested (id INT PRIMARY KEY, n BIGINT)")
        run(connection, "INSERT INTO contested VALUES (1, 0)")
    with server.begin() as one, server.begin() as two:
        for connection in (one, two):
            run(connection, "UPDATE contested SET n = n + 1 WHERE id = 1")
        two.commit()
        with pytest.raises(adbc_driver_manager.Error, match="40001"):
            one.commit()
    # The driver forgets its transaction when a commit fails, and refuses to begin another: connect again.
    with server.begin() as again:
        run(again, "UPDATE contested SET n = n + 1 WHERE id = 1")
        again.commit()
        assert fetch(again, "SELECT n FROM contested") == [(2,)]


def test_concurrent_increments_all_count(server):
    with server.connect() as connection:
        run(connection, "CREATE TABLE increments (id INT PRIMARY KEY, n BIGINT)")
        run(connection, "INSERT INTO increments VALUES (1, 0), (2, 0)")
    failures, conflicts = [], []

    def autocommit():
        with server.connect() as connection:
            for _ in range(10):
                run(connection, "UPDATE increments SET n = n + 1 WHERE id = 1")

    def transaction():
        for _ in range(5):
            while not increment():
                pass

    def increment() -> bool:
        """False when another was first; then the driver wants another connection."""
        with server.begin() as connection:
            [(n,)] = fetch(connection, "SELECT n FROM increments WHERE id = 2")
            try:
                run(connection, "UPDATE increments SET n = ? WHERE id = 2", (n + 1,))
                connection.commit()
                return True
            except adbc_driver_manager.Error as error:
                assert "40001" in str(error)
                conflicts.append(error)
                return False

    def guarded(work):
        try:
            work()
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in [autocommit] * 4 + [transaction] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    with server.connect() as connection:
        assert fetch(connection, "SELECT n FROM increments ORDER BY id") == [(40,), (20,)]


def test_a_transaction_reads_one_snapshot(server):
    with server.begin() as one, server.connect() as two:
        run(two, "CREATE TABLE shown (id INT)")
        assert fetch(one, "SELECT count(*) FROM shown") == [(0,)]
        run(two, "INSERT INTO shown VALUES (1)")
        assert fetch(one, "SELECT count(*) FROM shown") == [(0,)]
        one.commit()
        assert fetch(one, "SELECT count(*) FROM shown") == [(1,)]


def test_begin_in_sql_needs_cookies(server):
    with server.connect() as connection:
        with pytest.raises(adbc_driver_manager.NotSupportedError, match="cookie"):
            run(connection, "BEGIN")
    with server.connect(**COOKIES) as one, server.connect() as two:
        run(one, "CREATE TABLE by_sql (id INT)")
        run(one, "BEGIN")
        run(one, "INSERT INTO by_sql VALUES (1)")
        run(one, "SAVEPOINT kept")
        run(one, "INSERT INTO by_sql VALUES (2)")
        run(one, "ROLLBACK TO SAVEPOINT kept")
        assert fetch(one, "SELECT id FROM by_sql") == [(1,)]
        assert fetch(two, "SELECT id FROM by_sql") == []
        run(one, "COMMIT")
        assert fetch(two, "SELECT id FROM by_sql") == [(1,)]


def test_a_restart_ends_a_session_aloud(start):
    server = start()
    with server.connect(**COOKIES) as connection:
        run(connection, "CREATE TABLE kept (id INT)")
        run(connection, "BEGIN")
        run(connection, "INSERT INTO kept VALUES (1)")
        server.kill()
    with start().connect() as connection:
        assert fetch(connection, "SELECT * FROM kept") == []


def test_current_schema_and_catalog(server):
    with server.connect(**COOKIES) as connection:
        handle = connection.adbc_connection
        assert handle.get_option("adbc.connection.catalog") == "hyprstream"
        assert handle.get_option("adbc.connection.db_schema") == "public"
        handle.set_options(**{"adbc.connection.db_schema": "elsewhere"})
        assert handle.get_option("adbc.connection.db_schema") == "elsewhere"
        run(connection, "CREATE TABLE placed (id INT)")
        assert fetch(connection, "SELECT count(*) FROM placed") == [(0,)]
        handle.set_options(**{"adbc.flight.sql.session.option.time_zone": "Asia/Tokyo"})
        [(zone,)] = fetch(connection, "SELECT arrow_typeof(now())")
        assert "Asia/Tokyo" in zone
        with pytest.raises(adbc_driver_manager.Error, match="colour"):
            handle.set_options(**{"adbc.flight.sql.session.option.colour": "red"})
    with server.connect() as connection:
        assert fetch(connection, "SELECT count(*) FROM elsewhere.placed") == [(0,)]


def test_schema_of_a_statement_without_running_it(server):
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE not_run (id INT, name TEXT)")
        statement = adbc_driver_manager.AdbcStatement(connection.adbc_connection)
        statement.set_sql_query("SELECT name, id FROM not_run")
        assert pa.schema(statement.execute_schema()).names == ["name", "id"]
        statement.set_sql_query("INSERT INTO not_run VALUES (1, 'a')")
        statement.prepare()
        statement.close()
        assert fetch(connection, "SELECT count(*) FROM not_run") == [(0,)]


def test_partitions_and_polling(server):
    with server.connect() as connection, connection.cursor() as cursor:
        partitions, schema = cursor.adbc_execute_partitions("SELECT 1 AS one")
        assert schema.names == ["one"]
        rows = []
        for partition in partitions:
            with connection.cursor() as reader:
                reader.adbc_read_partition(partition)
                rows += reader.fetchall()
        assert rows == [(1,)]
    with server.connect() as connection:
        statement = adbc_driver_manager.AdbcStatement(connection.adbc_connection)
        statement.set_options(**{"adbc.statement.exec.incremental": "true"})
        statement.set_sql_query("SELECT value FROM generate_series(1, 5)")
        partitions, _, _ = statement.execute_partitions()
        assert len(partitions) == 1
        assert statement.execute_partitions()[0] == []
        statement.close()


def test_isolation_level_is_told(server):
    with server.connect() as connection:
        # FLIGHT_SQL_SERVER_TRANSACTION is how the driver knows; without it this would raise.
        connection.adbc_connection.set_autocommit(False)
        connection.adbc_connection.set_autocommit(True)
