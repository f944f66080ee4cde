"""`make demo-web`: a blog post writes itself in the browser, from one page that is one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

EXAMPLE = Path(__file__).with_name("blog_writer.py")
PAGE = Path(__file__).with_name("blog_post.html")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def main() -> int:
    """Serve the blog writer, and the page from an origin of its own, as a front end in development has it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    onward = str(Path(sys.executable).with_name("onward"))
    code = os.path.relpath(EXAMPLE)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(PAGE.parent))) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{pages.server_port}"
        serve = [onward, "dev", code, "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", f"--cors-origin={origin}"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, start_new_session=True) as dev:  # noqa: S603
            try:
                doors = _doors(dev)
                if doors:
                    page = f"{origin}/{PAGE.name}?door=http://{doors['http']}"
                    print(f"\nA post that writes itself:\n\n  {page}\n")
                    print("Start one, and then reload the page, close it and come back, or kill what writes it:\n")
                    print(f"  pkill -9 -P {dev.pid} -f executor\n")
                    print(f"What goes on inside: http://{doors['http']}/console    (Ctrl-C ends all of it)", flush=True)
                    if sys.stdout.isatty():
                        webbrowser.open(page)
                return dev.wait()
            except KeyboardInterrupt:
                return 130
            finally:
                dev.terminate()
                pages.shutdown()


def _doors(dev: subprocess.Popen[str]) -> dict[str, str]:
    """Return where the Gateway listens, as the ready line says it; nothing if there is none."""
    assert dev.stdout is not None
    for line in dev.stdout:
        if line.startswith("ready "):
            return dict(field.split("=", 1) for field in line.split()[1:])
    return {}


if __name__ == "__main__":
    sys.exit(main())
