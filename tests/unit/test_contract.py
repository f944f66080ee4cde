"""The contract: what anybody can do with `protos/`, a protoc and nothing of ours."""

import os
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

PROTOS = Path(__file__).parents[2] / "protos"
FILES = [path.relative_to(PROTOS).as_posix() for path in sorted(PROTOS.rglob("*.proto"))]

# A client in another folder: it prints the Gateway's methods, as its own stubs have them.
STRANGER = """
import sys
from onward.v1.gateway_service_pb2 import DESCRIPTOR
from onward.v1.gateway_service_pb2_grpc import GatewayServiceStub
assert all(m.__file__.startswith(sys.argv[1]) for name, m in sys.modules.items() if name.startswith("onward.v1."))
print(*DESCRIPTOR.services_by_name["GatewayService"].methods_by_name)
"""


def protoc(*arguments: str) -> None:
    """Run plain protoc. It finds the Google well-known types by itself and nothing else."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools comes with the dev extra")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *arguments, *FILES], check=True)


def stub(file: str) -> FileDescriptor:
    """The descriptor in the committed stub of a proto file."""
    descriptor: FileDescriptor = import_module(file.removesuffix(".proto").replace("/", ".") + "_pb2").DESCRIPTOR
    return descriptor


def test_a_client_made_from_the_protos_alone_needs_nothing_of_ours(tmp_path: Path) -> None:
    """What plain protoc writes loads where only grpcio and protobuf are at hand."""
    protoc(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}")

    # -S leaves out the .pth file that points to this checkout.
    path = os.pathsep.join([str(tmp_path), sysconfig.get_path("platlib")])
    command = [sys.executable, "-S", "-c", STRANGER, str(tmp_path)]
    stranger = subprocess.run(command, check=True, text=True, capture_output=True, env={"PYTHONPATH": path})

    gateway = stub("onward/v1/gateway_service.proto").services_by_name["GatewayService"]
    assert list(gateway.methods_by_name) == stranger.stdout.split()


@pytest.mark.parametrize("file", FILES)
def test_every_proto_file_has_a_committed_stub(file: str) -> None:
    """`make check` compares the stubs with the files; this, that each is there and loads."""
    assert file == stub(file).name
