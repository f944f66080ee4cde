"""`make demo`: everything on this machine, one run of the blog writer, followed in this terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).with_name("blog_writer.py")
RUN_ID = "onward-demo-{}"


def main(topic: str, *, approve: bool = False) -> int:
    """Serve the blog writer, start a run about `topic`, follow it, and tell how to follow it again."""
    onward = str(Path(sys.executable).with_name("onward"))
    code = os.path.relpath(EXAMPLE)
    run_id = RUN_ID.format(os.urandom(3).hex())
    serve = [onward, "dev", code, "--grpc=127.0.0.1:0", "--http=127.0.0.1:0", "--no-reload"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, start_new_session=True) as dev:  # noqa: S603
        try:
            gateway = _gateway(dev)
            if not gateway:
                return dev.wait() or 1
            given = json.dumps({"topic": topic, "approve": approve})
            start = [onward, "start", "blog_post", "--input", given, "--run-id", run_id]
            print(f"\nRun {run_id}: a blog post about {topic!r}\n", flush=True)
            if approve:
                say = f"{os.path.relpath(onward)} signal {run_id} outline"
                print("When it has an outline, it waits for you. Answer in another terminal:")
                for word in ("true", "false", '\'["Leaves", "Water", "Cups"]\''):
                    print(f"  {say} {word} --gateway {gateway}")
                print(flush=True)
            status = subprocess.call([*start, "--follow"], env={**os.environ, "ONWARD_GATEWAY": gateway})  # noqa: S603
        except KeyboardInterrupt:
            status = 130
        finally:
            dev.terminate()
    here = os.path.relpath(onward)
    print("\nThe run is kept in .onward/. To follow it again, from its first event or after event N:")
    print(f"  {here} dev {code}    # in one terminal")
    print(f"  {here} follow {run_id} [--after N]    # in another one")
    return status


def _gateway(dev: subprocess.Popen[str]) -> str:
    """Return where the Gateway listens, as the ready line says it; empty if there is none."""
    assert dev.stdout is not None
    for line in dev.stdout:
        if line.startswith("ready "):
            return dict(field.split("=", 1) for field in line.split()[1:])["grpc"]
    return ""


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--approve"]
    sys.exit(main(" ".join(words) or "the history of tea", approve="--approve" in sys.argv))
