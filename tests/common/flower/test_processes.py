from common.flower.processes import superlink_command, superlink_environment


def test_superlink_stays_on_loopback_and_silent(tmp_path):
    command = superlink_command(9445, tmp_path / "superlink.sock")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    environment = superlink_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(tmp_path)
