"""What compiled clients get of a statement, for the benchmarks that ask from Python as well."""

import json
import subprocess
import tempfile


def ask(load: str, address: str, texts: list[str], sql: str, clients: int, seconds: float = 5) -> dict:
    """Queries a second and milliseconds of one, with each text bound to every parameter of `sql` in turn.

    `load` is the program of crates/hyprstream/benches/flight_rate.rs.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(texts))
        file.flush()
        command = [load, "ask", f"http://{address}", str(clients), str(seconds), file.name, sql]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
