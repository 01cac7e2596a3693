"""The sessions of the SDKs for Azure and Google."""

import socket
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.waiting import WITHIN
from worker.storage.transfer.send_in_slices import mount_sliced_body


def test_a_closed_session_ends_its_connections_although_an_answer_is_kept() -> None:
    """An answer refers to its pool, and that of an error is freed only with the garbage of its traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server, requests.Session() as session, ThreadPoolExecutor(1) as pool:
        mount_sliced_body(session)
        asked = pool.submit(session.get, f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=WITHIN)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(WITHIN)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            kept = asked.result()
            session.close()
            assert (connection.recv(1), kept.status_code) == (b"", 404)
