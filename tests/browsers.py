"""A browser for tests of what readers see: where it is, and how it is started."""

import contextlib
import functools
import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The browser that the variable CHROMIUM names; without it, the first of NAMES that is installed."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else NAMES
    return next(filter(None, map(shutil.which, names)), None)


def missing(*packages: str) -> str:
    """What to install for a browser test that needs these packages, in a sentence; "" where all is here."""
    lacking = [name for name in ("playwright", *packages) if importlib.util.find_spec(name) is None]
    steps = [f"pip install {' '.join(lacking)}"] if lacking else []
    if not find():
        steps.append("install Chromium or Chrome, or let CHROMIUM name its program")
    return f"this test drives a browser; to run it: {' and '.join(steps)}" if steps else ""


@contextlib.contextmanager
def chromium() -> Iterator:
    """A headless browser, as a Playwright Browser; closed at the end."""
    from playwright.sync_api import sync_playwright  # only those who run these tests need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=QUIET)
        yield browser
        browser.close()


@contextlib.contextmanager
def served(folder) -> Iterator[str]:
    """A folder on a server of this machine: its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # a page that is closed hangs up in the middle of a file

    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
