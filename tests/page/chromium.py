"""Drives a headless Chromium over its DevTools pipe."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A page in Chromium.

    Attributes:
      events: (method, parameters) that have arrived.
    """

    def __init__(self, requests: int, answers: int):
        self._requests, self._answers = requests, open(answers, "rb", buffering=0)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[tuple[str, dict]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """A command of the DevTools protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append((answer.get("method"), answer.get("params", {})))

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            part = self._answers.read(1 << 16)
            assert part, "Chromium has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str):
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0):
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds:g} s: {script}"
            time.sleep(0.02)
        return value

    def press(self, key: str, text: str | None = None) -> None:
        """A key of the keyboard, such as "ArrowDown" or "/"."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else None) if text is None else text
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
        if text:
            fields["text"] = text
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def drop(self, path: Path, x: int = 300, y: int = 300) -> None:
        """Drops a file onto the page, as from a file manager."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        self.run("0")  # receives what has arrived
        sent = [event for name, event in self.events if name == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]

    def problems(self) -> list[str]:
        """Exceptions, violations of the policy and other errors of the page."""
        self.run("0")
        found = [str(event) for name, event in self.events if name == "Runtime.exceptionThrown"]
        entries = [event["entry"] for name, event in self.events if name == "Log.entryAdded"]
        return found + [str(entry) for entry in entries if entry["level"] == "error"]


_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
_CODES |= {"ArrowDown": 40}


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A tab of a Chromium of its own, which ends with the block."""
    requests, ours = os.pipe()
    answers, theirs = os.pipe()
    command = [
        PATH,
        "--headless=new",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--no-sandbox",  # of Chromium; as root, in containers, it has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "about:blank",
    ]
    # Chromium reads commands from descriptor 3, and writes answers to 4.
    script = f'exec "$@" 3<&{requests} 4>&{theirs}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(requests, theirs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(requests)
    os.close(theirs)
    try:
        yield Tab(ours, answers)
    finally:
        process.terminate()
        process.wait()
        os.close(ours)
