"""A headless Chromium in which tests open pages, asked in its DevTools protocol over two pipes, without a package."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

HINT = "no Chromium on the PATH: `apt-get install chromium`, or set CHROMIUM to one"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-sync", "--disable-background-networking"),
    *("--disable-component-update", "--hide-scrollbars", "--mute-audio", "--force-color-profile=srgb"),
)
PATIENCE = 60.0
"""Seconds within which the browser must answer."""
LOOK = """
(() => {
  const width = document.documentElement.clientWidth;
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = numbers(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const every = [...document.querySelectorAll("body *")].filter(e => !e.closest("svg"));
  const spoken = every.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const contrast = element => {
    const both = [light(numbers(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  };
  return {
    text: document.body.innerText,
    title: document.title,
    scripts: document.scripts.length,
    ground: getComputedStyle(document.querySelector(".ab-page") || document.body).backgroundColor,
    scrolls: document.documentElement.scrollWidth > width,
    clipped: every.filter(e => !e.closest(".scroll, pre") && e.getBoundingClientRect().right > width + 1).length,
    contrast: Math.min(...spoken.map(contrast)),
    letters: Math.min(...spoken.map(e => parseFloat(getComputedStyle(e).fontSize))),
  };
})()
"""
"""What is to be known of a page that is shown."""


def chromium():
    """The path of a Chromium, or nothing."""
    if given := os.environ.get("CHROMIUM"):
        return given
    played = sorted(Path.home().glob(".cache/ms-playwright/chromium-*/chrome-linux*/chrome"))
    return next(filter(None, map(shutil.which, NAMES)), str(played[-1]) if played else None)


class Browser:
    """A browser; ``with Browser(folder) as browser:`` around its use. Its profile goes into the folder."""

    def __init__(self, folder):
        self.folder, self.last, self.buffer, self.session = Path(folder), 0, b"", None
        self.events = []

    def __enter__(self):
        path = chromium()
        assert path is not None, HINT
        theirs, self.write = os.pipe()
        self.read, answers = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs, answers)]  # 3 and 4 may be among them
        moves = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(ends, (3, 4), strict=True)]
        quiet = [(os.POSIX_SPAWN_OPEN, place, os.devnull, os.O_RDWR, 0) for place in (1, 2)]
        arguments = [path, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self.process = os.posix_spawn(path, arguments, os.environ, file_actions=[*moves, *quiet], setpgroup=0)
        for end in (theirs, answers, *ends):
            os.close(end)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        os.close(self.write)
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.read)

    def ask(self, method, **parameters):
        """What the browser answers; what happens meanwhile is kept."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        message |= {} if self.session is None else {"sessionId": self.session}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.last:
                assert "error" not in found, (method, found)
                return found["result"]
            self._take(found)

    def _next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE} s"
            more = os.read(self.read, 1 << 20)
            assert more, "the browser has ended"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _take(self, event):
        if "method" not in event:  # an answer that nobody waits for
            return
        self.events.append((event["method"], event["params"]))
        if event["method"] == "Page.javascriptDialogOpening":  # which would hold up the page
            self.last += 1
            answer = {"id": self.last, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self.write, json.dumps({**answer, "sessionId": self.session}).encode() + b"\0")

    def open(self, path, width, scheme="light", vision="none"):
        """Show a file, and say what is to be known of it, with what happened as it was opened."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Emulation.setEmulatedVisionDeficiency", type=vision)
        self.events.clear()
        url = Path(path).resolve().as_uri()
        self.ask("Page.navigate", url=url)
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._take(self._next())
        found = self.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
        asked = [p["request"]["url"] for method, p in self.events if method == "Network.requestWillBeSent"]
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return found | {
            "outside": [other for other in asked if other != url and not other.startswith("data:")],
            "said": [p for method, p in self.events if method in said],
            "dialogs": [p["message"] for method, p in self.events if method == "Page.javascriptDialogOpening"],
        }

    def picture(self, path, top=0, height=None):
        """Write what the page looks like, all of it or a part, as a PNG file."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        height = min(height or size["height"], size["height"] - top)
        clip = {"x": 0, "y": top, "width": size["width"], "height": height, "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
        return size["height"]
