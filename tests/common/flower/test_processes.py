import logging

import pytest
from fastapi.testclient import TestClient
from flwr.proto import log_pb2, runtime_pb2
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.main import create_app

from common.flower.processes import superlink_command, superlink_environment, told_as_last_words


def test_superlink_stays_on_loopback_and_silent(tmp_path):
    command = superlink_command(9445, tmp_path / "superlink.sock")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    environment = superlink_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(tmp_path)


@pytest.mark.parametrize(
    ("path", "request_", "level"),
    [
        ("push-logs", log_pb2.PushLogsRequest(), "INFO"),
        ("pull-messages", runtime_pb2.PullAppMessagesRequest(), "ERROR"),  # of a stranger, it may be
    ],
)
def test_last_words_of_a_server_app_under_a_token_that_is_void_are_no_error(path, request_, level, caplog):
    """Flower's own application, asked as its ServerApp does after the end of a run."""
    logger = logging.getLogger("flwr")
    logger.addFilter(told_as_last_words)
    logger.addHandler(caplog.handler)
    try:
        headers = {"content-type": PROTOBUF_MEDIA_TYPE, TASK_TOKEN_HEADER: "void"}
        place = f"/v1/runtime/{path}"
        answer = TestClient(create_app()).post(place, content=request_.SerializeToString(), headers=headers)
    finally:
        logger.removeHandler(caplog.handler)
        logger.removeFilter(told_as_last_words)
    assert answer.status_code == 401
    # Seen twice where Flower's logger hands on what it is told.
    ((found, said),) = {(one.levelname, one.getMessage()) for one in caplog.records if "[ApiError:" in one.getMessage()}
    assert said.startswith(f"[{place}][ApiError:")
    assert found == level
    assert ("whose run has ended" in said) is (level == "INFO")
