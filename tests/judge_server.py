"""A scripted judge on 127.0.0.1, with every fault that real endpoints have."""

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str]


def completion(text: str, *, finish: str = "stop", logprobs: Any = None, usage: bool = True) -> dict[str, Any]:
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": logprobs,
    }
    counted = {"usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}} if usage else {}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice], **counted}


def error(message: str, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def check_word(body: dict[str, Any]) -> str:
    """The word that the last user message asks to be repeated."""
    return re.findall(r'"check": "([0-9a-f]{16})"', body["messages"][-1]["content"])[-1]


def material(body: dict[str, Any]) -> dict[str, str]:
    """The JSON object with the request and both answers."""
    text = body["messages"][-1]["content"]
    return json.JSONDecoder().raw_decode(text, text.index("{"))[0]


def choose(better: Callable[[dict[str, str]], str]) -> Answer:
    """Replies of a judge of pairs that keeps to the format."""
    return lambda body: json.dumps({"check": check_word(body), "better": better(material(body))})


class JudgeServer(ThreadingHTTPServer):
    """Answers with `answer`, after the faults in `script`, one per request.

    A fault is a function of the handler that writes the answer itself, or a status with headers and a body.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer, *, latency_s: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.latency_s = answer, latency_s
        self.script: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.at: list[float] = []
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            self.server.at.append(time.monotonic())
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            fault = self.server.script.pop(0) if self.server.script else None
        try:
            time.sleep(self.server.latency_s)
            if callable(fault):
                fault(self)
            elif fault is not None:
                self.send(*fault)
            else:
                found = self.server.answer(body)
                self.send(200, {}, found if isinstance(found, dict) else completion(found))
        finally:
            with self.server.lock:
                self.server.running -= 1

    def send(self, status: int, headers: dict[str, str], content: Any) -> None:
        """One packet: two would wait for each other's acknowledgement, 40 ms each."""
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}.items():
            self.send_header(name, value)
        self.wfile.write(b"".join(self._headers_buffer) + b"\r\n" + payload)
        self._headers_buffer = []

    def log_message(self, *_: Any) -> None:
        """Silent."""


def hang(seconds: float) -> Callable[[_Handler], None]:
    """Answer too late."""

    def fault(handler: _Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def drip(seconds: float) -> Callable[[_Handler], None]:
    """Send a byte now and then, so that no single read times out."""

    def fault(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.05)
            handler.wfile.write(b" ")
        handler.close_connection = True

    return fault


def close(handler: _Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def truncate(handler: _Handler) -> None:
    """Promise more bytes than are sent."""
    payload = json.dumps(completion("Rating: [[5]]")).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    handler.wfile.write(head.encode() + payload[: len(payload) // 2])
    handler.close_connection = True


def garbage(handler: _Handler) -> None:
    """A stream of events that nobody asked for, broken off."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    handler.wfile.write(b'data: \xff\xfe\x00garbage [[10]]\n\ndata: {"choices": [' * 20)
    handler.close_connection = True


@contextmanager
def judge_server(answer: Answer, *, latency_s: float = 0.0):
    """A server that is running, and afterwards is not."""
    server = JudgeServer(answer, latency_s=latency_s)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
