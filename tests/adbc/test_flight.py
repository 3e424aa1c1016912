"""Raw Flight calls with pyarrow, for what ADBC does not send."""

import pyarrow as pa
import pyarrow.flight as flight
import pytest

# Flight SQL's commands as google.protobuf.Any, by hand: pyarrow has no Flight SQL messages.
TYPE = "type.googleapis.com/arrow.flight.protocol.sql."


def field(tag: int, body: bytes) -> bytes:
    length, prefix = len(body), b""
    while length > 127:
        prefix += bytes([length & 127 | 128])
        length >>= 7
    return bytes([tag << 3 | 2]) + prefix + bytes([length]) + body


def message(name: str, body: bytes) -> bytes:
    return field(1, (TYPE + name).encode()) + field(2, body)


def statement(sql: str, transaction: bytes = b"") -> flight.FlightDescriptor:
    body = field(1, sql.encode()) + (field(2, transaction) if transaction else b"")
    return flight.FlightDescriptor.for_command(message("CommandStatementQuery", body))


def value_of(any_message: bytes) -> bytes:
    """The first bytes field of the message inside an Any, both shorter than 128 bytes."""
    at = 2 + any_message[1]
    inner = any_message[at + 2 :]
    return inner[2 : 2 + inner[1]]


@pytest.fixture
def client(server):
    with flight.connect(f"grpc://{server.address}") as client:
        yield client


def read(client, info) -> list:
    return [row for endpoint in info.endpoints for row in client.do_get(endpoint.ticket).read_all().to_pylist()]


def act(client, name: str, body: bytes) -> list:
    return [result.body.to_pybytes() for result in client.do_action(flight.Action(name, body))]


def test_get_schema_runs_nothing(client):
    client.get_flight_info(statement("CREATE TABLE raw_schema (id INT, name TEXT)"))
    assert client.get_schema(statement("SELECT name FROM raw_schema")).schema.names == ["name"]
    assert client.get_schema(statement("INSERT INTO raw_schema VALUES (1, 'a')")).schema.names == []
    assert read(client, client.get_flight_info(statement("SELECT count(*) AS n FROM raw_schema"))) == [{"n": 0}]


def test_transactions_by_action(client):
    client.get_flight_info(statement("CREATE TABLE raw_rows (id INT)"))
    for end, rows in [(2, 0), (1, 1)]:
        [begun] = act(client, "BeginTransaction", message("ActionBeginTransactionRequest", b""))
        transaction = value_of(begun)
        client.get_flight_info(statement("INSERT INTO raw_rows VALUES (1)", transaction))
        inside = client.get_flight_info(statement("SELECT count(*) AS n FROM raw_rows", transaction))
        assert read(client, inside) == [{"n": 1}]
        ended = message("ActionEndTransactionRequest", field(1, transaction) + bytes([2 << 3, end]))
        assert act(client, "EndTransaction", ended) == []
        outside = client.get_flight_info(statement("SELECT count(*) AS n FROM raw_rows"))
        assert read(client, outside) == [{"n": rows}]
        with pytest.raises(pa.ArrowKeyError, match="transaction"):
            client.get_flight_info(statement("SELECT 1", transaction))


def test_every_action_is_listed(client):
    names = {action.type for action in client.list_actions()}
    assert names >= {
        "BeginTransaction",
        "EndTransaction",
        "BeginSavepoint",
        "EndSavepoint",
        "CancelQuery",
        "CancelFlightInfo",
        "RenewFlightEndpoint",
        "SetSessionOptions",
        "GetSessionOptions",
        "CloseSession",
        "CreatePreparedStatement",
        "ClosePreparedStatement",
    }


class Cookies(flight.ClientMiddlewareFactory):
    """What a client does that keeps cookies."""

    def __init__(self):
        self.cookie = None

    def start_call(self, info):
        jar = self

        class Middleware(flight.ClientMiddleware):
            def sending_headers(self):
                return {"cookie": jar.cookie} if jar.cookie else {}

            def received_headers(self, headers):
                for cookie in headers.get("set-cookie", []):
                    jar.cookie = cookie.split(";")[0]

        return Middleware()


def test_a_session_by_cookie(server, client):
    jar = Cookies()
    with flight.connect(f"grpc://{server.address}", middleware=[jar]) as session:
        session.get_flight_info(statement("CREATE TABLE raw_session (id INT)"))
        session.get_flight_info(statement("BEGIN"))
        session.get_flight_info(statement("INSERT INTO raw_session VALUES (1)"))
        count = statement("SELECT count(*) AS n FROM raw_session")
        assert read(session, session.get_flight_info(count)) == [{"n": 1}]
        assert read(client, client.get_flight_info(count)) == [{"n": 0}]
        act(session, "CloseSession", b"")
        with pytest.raises(flight.FlightUnauthenticatedError):
            session.get_flight_info(count)
        assert read(client, client.get_flight_info(count)) == [{"n": 0}]


def test_settings_of_a_search_last_for_the_session(server, client):
    jar = Cookies()
    client.get_flight_info(statement("CREATE TABLE raw_places (id INT, at VECTOR(2))"))
    client.get_flight_info(statement("INSERT INTO raw_places VALUES (1, [0.0, 1.0])"))
    plan = statement("EXPLAIN SELECT id FROM raw_places ORDER BY l2_distance(at, [1.0, 0.0]) LIMIT 1")
    with flight.connect(f"grpc://{server.address}", middleware=[jar]) as session:
        session.get_flight_info(plan)  # the cookie comes with the first answer
        session.get_flight_info(statement("SET hnsw.ef_search = 77"))
        session.get_flight_info(statement("SET ai.cache = off"))
        assert "ef_search=77" in str(read(session, session.get_flight_info(plan)))
        session.get_flight_info(statement("RESET hnsw.ef_search"))
        assert "ef_search" not in str(read(session, session.get_flight_info(plan)))
    assert "ef_search" not in str(read(client, client.get_flight_info(plan)))
