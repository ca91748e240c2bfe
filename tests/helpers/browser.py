"""A headless Chromium controlled by chromedriver over plain HTTP, without a library or a network."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
KEYS = {
    "Escape": "\ue00c", "Enter": "\ue007", "End": "\ue010", "Home": "\ue011",
    "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015",
}  # fmt: skip
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def needed(programs: tuple[str, ...]) -> str:
    """Return the path of the first of these programs that exists; if none does, skip the test."""
    found = next(filter(None, map(shutil.which, programs)), None)
    if found is None:
        pytest.skip(f"{programs[0]} is not installed")
    return found


class Browser:
    """One window. It records every message of its console and every address that it requests."""

    def __init__(self) -> None:
        browser, driver = needed(BROWSERS), needed(DRIVERS)
        self.home = tempfile.TemporaryDirectory(prefix="browser-")
        words = [driver, "--port=0", "--log-level=SEVERE"]
        environment = os.environ | {"HOME": self.home.name}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        assert self.process.stdout is not None
        self.port = next(
            int(found[1]) for line in self.process.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--lang=en"]
        options = {"binary": browser, "args": [*flags, "--window-size=1280,900", f"--user-data-dir={self.home.name}/profile"]}
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self.session = ""
        self.session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": asked}})["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self.process.terminate()
            self.process.communicate()
            self.home.cleanup()

    def open(self, place: Path | str, fragment: str = "") -> None:
        """Open a file or an address again, also if only the fragment differs."""
        self._ask("POST", "/url", {"url": "about:blank"})
        self._ask("POST", "/url", {"url": (place if isinstance(place, str) else place.resolve().as_uri()) + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of a function body in the page; a promise is awaited."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def settled(self) -> None:
        """Wait until the page has drawn everything."""
        self.run("return new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")

    def keys(self, *keys: str) -> None:
        """Press keys one after the other: names as in KEYS, or texts."""
        pressed = [sign for key in keys for sign in (KEYS.get(key) or key)]
        actions = [{"type": kind, "value": sign} for sign in pressed for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})
        self.settled()

    def click(self, selector: str) -> None:
        """Click the first element of a selector at its position, like a user."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{next(iter(found.values()))}/click", {})
        self.settled()

    def command(self, name: str, **parameters: Any) -> Any:
        """Call a command of Chromium's own protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def dark(self, dark: bool) -> None:
        """Set the preference for a dark or a light page."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Set the size of the window."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600
        )

    def picture(self) -> bytes:
        """Return the content of the window as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def messages(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [f"{entry['level']} {entry['message']}" for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def asked_for(self) -> list[str]:
        """Return the addresses that pages have requested since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self._ask("POST", "/se/log", {"type": "performance"})]
        return [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        place = f"http://127.0.0.1:{self.port}" + (f"/session/{self.session}" if self.session else "") + path
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(place, data, {"Content-Type": "application/json"}, method=method)
        try:
            with LOCAL.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
