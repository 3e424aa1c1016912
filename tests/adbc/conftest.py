"""The real binary as a server in its own process, and ADBC connections to it."""

import os
import pathlib
import queue
import signal
import subprocess
import threading

import adbc_driver_flightsql.dbapi as flightsql
import pytest

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 120


def binary() -> str:
    path = os.environ.get("HYPRSTREAM_BIN")
    if not path:
        pytest.exit("HYPRSTREAM_BIN must name the hyprstream binary", returncode=2)
    return path


class Server:
    """`hyprstream serve` on a directory; the port is the system's choice."""

    def __init__(self, data_dir: pathlib.Path, settings: dict | None = None, wait: bool = True):
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [binary(), "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | (settings or {}),
            )
        # A reader of its own, so that a server that says nothing cannot hang the tests.
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if wait:
            self._await_ready()

    def _await_ready(self):
        line = self.lines.get(timeout=START_TIMEOUT_S)
        prefix = "hyprstream ready on http://"
        assert line.startswith(prefix), f"{line!r}; log:\n{self.log.read_text()}"
        self.address = line.removeprefix(prefix).strip()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def connect(self, **db_kwargs):
        return flightsql.connect(f"grpc://{self.address}", db_kwargs=db_kwargs, autocommit=True)

    def begin(self, **db_kwargs):
        """A connection without autocommit, as DBAPI has it by default."""
        return flightsql.connect(f"grpc://{self.address}", db_kwargs=db_kwargs)

    def stop(self) -> int:
        """Asks the server to stop and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_TIMEOUT_S)

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=STOP_TIMEOUT_S)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def start(data_dir):
    """Starts servers on the test's directory; whatever still runs at the end is killed."""
    servers = []

    def start_one(directory=data_dir, env=None):
        server = Server(directory, env)
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the tests that only need one; it must stop cleanly."""
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture
def cursor(server):
    with server.connect() as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture(scope="session")
def smollm2():
    models = os.environ.get("HYPRSTREAM_TEST_MODELS")
    if not models:
        pytest.skip("HYPRSTREAM_TEST_MODELS names no directory with test models")
    found = sorted(pathlib.Path(models).rglob("*[sS]mol*.gguf"))
    if not found:
        pytest.skip(f"no SmolLM2 GGUF file below {models}")
    return found[0]
