"""Starts and stops the server that the demo and the benchmarks talk to."""

import pathlib
import signal
import subprocess

import adbc_driver_flightsql.dbapi

READY = "hyprstream ready on http://"


class Server:
    """`hyprstream serve` on a free port; use as a context manager, or stop it by `stop`."""

    def __init__(self, binary: str, data_dir: pathlib.Path, log: pathlib.Path):
        self.log = log
        self.process = subprocess.Popen(
            [binary, "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            text=True,
        )
        line = self.process.stdout.readline().strip()
        if not line.startswith(READY):
            self.process.kill()
            raise SystemExit(f"the server did not start: {line or 'see ' + str(log)}\n{log.read_text()[-2000:]}")
        self.ready_line = line
        self.address = line.removeprefix(READY)

    def connect(self):
        """An ADBC connection over Flight SQL that commits every statement."""
        return adbc_driver_flightsql.dbapi.connect(f"grpc://{self.address}", autocommit=True)

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
