"""A run that is proposed in a browser: what is shown is what is signed, by who may, as the command would."""

import html
import re
from hashlib import sha256
from pathlib import Path

import pytest

from common.config.rundocument import from_toml
from common.errors import ConfigError, EnrolmentError, FederationError
from common.identity.operators import subject_of
from common.web.pages import Dashboard, Page, Visit
from server.coordinator import supervisor
from server.dashboard.pages import Keyboard, dashboard_of
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.server.dashboard import recorded
from tests.server.dashboard.recorded import toml

TOML = toml("nodules")
RUN = from_toml(TOML)
VISIT = Visit("/base", "secret")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Home, Registry]:
    monkeypatch.setattr(supervisor, "is_running", lambda _home: True)
    return recorded.coordinator(tmp_path / "home")


def opened(stage: tuple[Home, Registry], name: str = operators.FIRST) -> Dashboard:
    return dashboard_of(*stage, Keyboard(name, None, None))


def look(dashboard: Dashboard, text: str = TOML) -> tuple[str, Page]:
    """As a form sends it."""
    told = dashboard.at_once["/propose/look"](VISIT, {"text": text.replace("\n", "\r\n")})
    return told, dashboard.pages["/propose"](VISIT)


def sign(dashboard: Dashboard, seen: str = RUN.hash) -> str:
    return dashboard.acts["/propose/sign"](VISIT, {"seen": seen, "sure": "on"})


def words(page: Page) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(page.body))))


def test_what_is_signed_is_what_the_command_would_propose(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    dashboard = opened(stage)
    told, page = look(dashboard)
    assert told == "Read it before you sign. No hospital is asked before you sign."
    assert registry.proposals() == []
    for said in (
        RUN.hash,
        "3 sites: st-anna, st-john, st-mary",
        "epsilon 8 for one patient",
        "CT: lesion",
        "signed by admin",
    ):
        assert said in words(page)
    assert sign(dashboard).startswith(f"Proposed nodules {RUN.hash[:8]}, signed by admin.")
    (proposal,) = registry.proposals()
    assert (proposal.run_hash, proposal.state, proposal.bundle) == (RUN.hash, "proposed", RUN.bundle)
    assert len(proposal.endorsements) == 1
    entry = [one for one in open_log(home).entries() if one.kind == "act"][-1]
    assert (entry.fields["action"], entry.fields["operator"]) == ("run", "admin")
    assert entry.fields["subject"] == subject_of(RUN.hash)
    assert sha256((home.run_folder(RUN) / "run.json").read_bytes()).hexdigest() == RUN.hash
    assert "What would be proposed" not in words(dashboard.pages["/propose"](VISIT))


def test_fault_is_shown_beside_the_text_and_nothing_can_be_signed(stage: tuple[Home, Registry]) -> None:
    dashboard = opened(stage)
    told, page = look(dashboard, TOML.replace("rounds = 8", "rouns = 8"))
    assert told == "It cannot be proposed as it is."
    assert "rouns" in page.said
    assert "rouns = 8, quorum = 2" in html.unescape(str(page.body))
    assert "Sign it" not in words(page)
    with pytest.raises(ConfigError, match=r"another run\.toml has been looked at"):
        sign(dashboard)


def test_text_that_was_looked_at_since_is_not_signed_for(stage: tuple[Home, Registry]) -> None:
    dashboard = opened(stage)
    look(dashboard)
    look(dashboard, TOML.replace("epsilon = 8.0", "epsilon = 80.0"))
    with pytest.raises(ConfigError, match=r"another run\.toml has been looked at"):
        sign(dashboard)
    with pytest.raises(ConfigError, match=r"another run\.toml has been looked at"):
        dashboard.acts["/propose/sign"](VISIT, {"sure": "on"})
    assert stage[1].proposals() == []


def test_run_that_is_known_already_is_refused(stage: tuple[Home, Registry]) -> None:
    dashboard = opened(stage)
    look(dashboard)
    sign(dashboard)
    _, page = look(dashboard)
    assert "Propose the run" not in words(page)
    assert RUN.hash[:8] in words(page)
    with pytest.raises(ConfigError):
        sign(dashboard)
    assert len(stage[1].proposals()) == 1


def test_form_that_is_sent_again_is_told_that_the_run_is_proposed(stage: tuple[Home, Registry]) -> None:
    dashboard = opened(stage)
    look(dashboard)
    sign(dashboard)
    assert sign(dashboard) == f"nodules {RUN.hash[:8]} is proposed already. Nothing was changed."
    assert len(stage[1].proposals()) == 1
    assert [one.fields["action"] for one in open_log(stage[0]).entries() if one.kind == "act"][-1:] == ["run"]


def test_nothing_is_proposed_while_no_coordinator_runs(
    stage: tuple[Home, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "is_running", lambda _home: False)
    dashboard = opened(stage)
    _, page = look(dashboard)
    assert "The coordinator is not running" in words(page)
    with pytest.raises(FederationError, match="not running"):
        sign(dashboard)
    assert stage[1].proposals() == []


def test_first_weights_cannot_be_given_in_a_browser(stage: tuple[Home, Registry]) -> None:
    told, page = look(opened(stage), f'{TOML}\n[initial]\nsha256 = "{"ab" * 32}"\n')
    assert told == "It cannot be proposed as it is."
    assert "wardround-server run RUN.toml --initial" in words(page)


def test_auditor_and_whoever_was_removed_propose_nothing(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    operators.add(home, registry, "omar", "auditor")
    dashboard = opened(stage, "omar")
    assert "Propose" not in dict(dashboard.menu)
    with pytest.raises(EnrolmentError, match="may not look"):
        dashboard.pages["/propose"](VISIT)
    with pytest.raises(EnrolmentError, match="may not"):
        dashboard.at_once["/propose/look"](VISIT, {"text": TOML})
    with pytest.raises(EnrolmentError, match="omar is auditor and may not run"):
        sign(dashboard)
    operators.add(home, registry, "ida", "operator")
    of_ida = opened(stage, "ida")
    look(of_ida)
    registry.remove_operator("ida")
    with pytest.raises(EnrolmentError):
        sign(of_ida)
    assert registry.proposals() == []


def test_number_too_long_to_be_written_is_a_fault_of_the_text(stage: tuple[Home, Registry]) -> None:
    """TOML's hexadecimal numbers are read at any length, and Python writes none of more than 4300 digits."""
    told, page = look(opened(stage), f"seed = 0x{'f' * 5000}\n{TOML}")
    assert told == "It cannot be proposed as it is."
    assert "run.toml is not valid TOML" in words(page)


def test_text_is_shown_and_not_obeyed(stage: tuple[Home, Registry]) -> None:
    _, page = look(opened(stage), "</textarea><script>alert(1)</script>")
    assert "<script>" not in str(page.body)
    assert "</textarea><script>" not in str(page.body)
