"""An OpenAI-compatible server on loopback that fails in every way that servers do, and else answers as FixedEngine.

Each POST draws what happens to it from `faults` (name -> weight), by a fixed seed.
"""

import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.fixed_engine import FixedEngine


class FaultyServer:
    """`with FaultyServer(faults) as server: server.url`; `server.seen` counts what happened."""

    def __init__(self, faults: dict[str, float] | None = None, seed: int = 0, hang: float = 1.0, refuse=None):
        self.faults = {"none": 1.0} if faults is None else faults
        self.rng, self.lock, self.hang = random.Random(seed), threading.Lock(), hang
        self.refuse = refuse or (lambda prompt: False)  # prompts that are answered with `refusal`, for ever
        self.refusal = 400
        self.models = None  # what /models answers in place of the usual
        self.engine, self.seen = FixedEngine(), Counter()
        self.now = self.most = 0  # POSTs being answered
        self.given: Counter = Counter()  # completions of a prompt that were sent in a part
        self.headers: list[dict] = []
        self.bodies: list[dict] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that gave up in the middle
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def choices(self, body: dict, fewer: bool) -> list[dict]:
        if "messages" in body:
            ids = self.engine.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            ids = body["prompt"]
        with self.lock:
            start = self.given[tuple(ids)]
            size = max(1, body["n"] // 2) if fewer else body["n"]
            self.given[tuple(ids)] = (start + size) if size < body["n"] else 0
        found = []
        for index in range(size):
            one = self.engine.complete(ids, start + index)
            choice = {"index": index, "finish_reason": "stop" if one.finished else "length"}
            if "messages" in body:
                choice["message"] = {"role": "assistant", "content": one.text}
            else:
                choice |= {"text": one.text, "token_ids": one.token_ids}
            found.append(choice)
        return found

    def events(self, answer: dict) -> bytes:
        """An answer as a stream: each choice in two pieces, then its end."""
        chunks = []
        for choice in answer["choices"]:
            chat, end = "message" in choice, choice.pop("finish_reason")
            text = choice.pop("message")["content"] if chat else choice.pop("text")
            for piece, reason in ((text[:2], None), (text[2:], None), ("", end)):
                said = {"delta": {"content": piece}} if chat else {"text": piece}
                chunks.append(answer | {"choices": [choice | said | {"finish_reason": reason}]})
                choice.pop("token_ids", None)
        return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def send(self, status: int, content: bytes, kind="application/json", length=None, **headers):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self):
                model = {"id": "student", "object": "model", "owned_by": "test", "created": 0}
                self.send(200, json.dumps(outer.models or {"object": "list", "data": [model]}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    fault = outer.rng.choices(list(outer.faults), list(outer.faults.values()))[0]
                    outer.seen[fault] += 1
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.bodies.append(body)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    self.answer(fault, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer.lock:
                        outer.now -= 1

            def answer(self, fault: str, body: dict):
                if outer.refuse(json.dumps(body.get("messages"))):
                    return self.send(outer.refusal, b'{"error": {"message": "this prompt is refused"}}')
                if fault in ("400", "401", "404", "500", "503"):
                    key = self.headers.get("Authorization", "")
                    message = {"error": {"message": f"status {fault} for {key}"}}
                    return self.send(int(fault), json.dumps(message).encode())
                if fault == "429":
                    return self.send(429, b'{"error": {"message": "slow down"}}', Retry_After="0.05")
                if fault == "hang":
                    time.sleep(outer.hang)
                    self.close_connection = True
                    return None
                if fault == "cut":
                    self.close_connection = True
                    return self.connection.shutdown(2)
                if fault == "page":
                    return self.send(200, b"<html>busy</html>", kind="text/html")
                answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
                answer["choices"] = outer.choices(body, fewer=fault == "fewer")
                if fault == "unfinished":
                    answer["choices"][-1]["finish_reason"] = None
                if fault == "abort":
                    answer["choices"][-1]["finish_reason"] = "abort"
                if fault in ("no text", "half a letter"):
                    text = "2\ud800" if fault == "half a letter" else None
                    last = answer["choices"][-1]
                    last |= (
                        {"message": {"role": "assistant", "content": text}} if "message" in last else {"text": text}
                    )
                if fault == "no choices":
                    answer["choices"] = []
                if body.get("stream"):
                    return self.send(200, outer.events(answer), kind="text/event-stream")
                content = json.dumps(answer).encode()
                if fault == "half":  # the connection breaks in the middle of the answer
                    self.close_connection = True
                    self.send(200, content[: len(content) // 2], length=len(content))
                    return self.connection.shutdown(2)
                if fault == "half json":  # a proxy cuts it and says that all is well
                    return self.send(200, content[: len(content) // 2])
                if fault == "drip":
                    self.send(200, b"", length=len(content))
                    for byte in content:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(outer.hang / 50)
                    return None
                return self.send(200, content)

        return Handler
