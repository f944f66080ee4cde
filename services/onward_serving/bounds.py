"""How large what a run keeps may be, whoever asks for the run."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from onward.v1.error_reason_pb2 import ErrorReason
from onward_serving.errors import Refused

LABELS_MAX = 32
LABEL_KEY_BYTES_MAX = 64
LABEL_VALUE_BYTES_MAX = 256


def check_size(what: str, size: int, limit: int) -> None:
    """Raises:
    Refused: TOO_LARGE.
    """
    if size > limit:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            ErrorReason.ERROR_REASON_TOO_LARGE,
            f"{what}: {size} is over the limit of {limit}",
            {"limit": str(limit), "size": str(size)},
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises:
    Refused: TOO_LARGE.
    """
    check_size("labels", len(labels), LABELS_MAX)
    for key, value in labels.items():
        check_size("a label's key in bytes", len(key.encode()), LABEL_KEY_BYTES_MAX)
        check_size(f"label {key} in bytes", len(value.encode()), LABEL_VALUE_BYTES_MAX)
