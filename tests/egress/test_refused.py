"""A tunnel that is refused: the cell says why, also to programs that show only its status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gvisor_kernel import Sandbox

CODE = """
import http.client
for host in ("one.example", "one.example", "a\\x1b[2J\\u202e.example"):
    connection = http.client.HTTPConnection("127.0.0.1", 3128, timeout=60)
    connection.connect()
    request = f"CONNECT {host}:443 HTTP/1.1\\r\\nHost: {host}:443\\r\\n\\r\\n"
    connection.sock.sendall(request.encode())
    assert connection.sock.recv(12) == b"HTTP/1.1 403" or host[1] == "\\x1b"
"""


@pytest.mark.parametrize("egress", [[], ["web"]])
def test_a_cell_shows_which_tunnel_was_refused_and_why(
    egress: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = {"web": {"hosts": ["two.example:443"]}}
    (tmp_path / "jupyter_config.json").write_text(json.dumps({"GVisorEgress": {"routes": routes}}))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    with Sandbox(egress=egress, memory="1G", spare=False) as sandbox:
        run = sandbox.run(CODE)
        installing = sandbox.run("%pip install tqdm-that-nobody-has numpy")
    assert run.error is None
    if egress:
        reason = "gvisor-kernel: no egress route of this kernel allows one.example:443"
    else:
        reason = (
            'This kernel has no network; pass egress=["packages"] to Sandbox to give it packages'
        )
    first, *more = run.stderr.splitlines()
    assert first == f"Refused: one.example:443: {reason}."
    assert len(more) == (0 if egress else 1)
    assert run.stderr.replace("\n", "").isprintable()
    # pip's own words are a warning with an exception's text, and two errors without a reason. The
    # word of the last tunnel comes from another process, and may be later than its cell's end.
    (line,) = (it for it in installing.stderr.splitlines() if it != first)
    told = "add packages to its setting egress" if egress else reason.partition("; ")[2]
    assert line == (
        "gvisor-kernel: pip finds no packages, as this kernel has no network for them; "
        + told
        + "."
    )
    assert "ERROR" not in installing.stdout


def test_pip_runs_where_it_needs_no_network() -> None:
    with Sandbox(memory="1G", spare=False) as sandbox:
        run = sandbox.run("%pip install pip\n%pip --version")
        assert "already satisfied: pip" in run.stdout
        assert "from /" in run.stdout
        assert not run.stderr
