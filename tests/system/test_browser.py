"""Both dashboards in a real Chromium: log in, live, approve and stop by keyboard, and what it does not give away.

axe-core looks at every page, light and dark. With WARDROUND_FIGURES=1 the pictures of docs/figures are made anew.
"""

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client.rules import approvals
from client.views import dashboard as site_views
from server.coordinator import supervisor
from server.dashboard import pages as coordinator_views
from server.federation.events import Journal
from server.home.folder import Home
from server.registry import operators
from server.registry.registry import Registry
from tests import ROOT, loopback
from tests.client.views import recorded as site_records
from tests.common.web.served import Open, opened
from tests.patience import PATIENCE_S
from tests.server.dashboard import recorded as coordinator_records

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# It reaches nobody: no name is looked up, and nothing is fetched behind the page's back.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
# Chromium looks whether there is a way to this address, and sends nothing there.
PROBED = "2001:4860:4860::8888"
FIGURES = ROOT / "docs" / "figures"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]


@dataclass
class Coordinator:
    home: Home
    registry: Registry
    journal: Journal
    served: Open


@dataclass
class Hospital:
    home: Path
    run: str
    served: Open


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if loopback.entered():
        loopback.own(PROBED)
    with sync_api.sync_playwright() as driver:
        one = driver.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        yield one
        one.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A new profile; whatever it complains of fails the test."""
    with browser.new_context(viewport={"width": 1100, "height": 800}) as context:
        context.set_default_timeout(1000 * PATIENCE_S)
        one = context.new_page()
        said: list[str] = []
        one.on("console", lambda message: said.append(message.text))
        one.on("pageerror", lambda error: said.append(str(error)))
        yield one
        assert said == []


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    home, registry = coordinator_records.coordinator(tmp_path / "server")
    run = coordinator_records.document("lesions-2026")
    journal = coordinator_records.begin(home, registry, run)
    for number in range(1, 6):
        odd, missing = {3: ("st-john", ""), 4: ("", "st-john")}.get(number, ("", ""))
        coordinator_records.play_round(journal, run, number, odd=odd, missing=missing)
    coordinator_records.propose(home, registry, coordinator_records.document("vessels-2026", private=False))
    keyboard = coordinator_views.Keyboard(operators.FIRST, None, None)
    with opened(coordinator_views.dashboard_of(home, registry, keyboard)) as served:
        yield Coordinator(home, registry, journal, served)


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    home = site_records.hospital(tmp_path)
    before = site_records.a_run("lesions-2025")
    approvals.answer(home, site_records.propose(home, before).run_hash, approved=True, by="person")
    site_records.train(home, before, 4)
    site_records.checked(home)
    run = site_records.propose(home, site_records.a_run("lesions-2026")).run_hash
    with opened(site_views.dashboard_of(home)) as served:
        yield Hospital(home, run, served)


RUN = coordinator_records.document("lesions-2026")
TOML = coordinator_records.toml("nodules-2026")


def log_in(page: Any, served: Open) -> None:
    page.goto(served.link)
    page.wait_for_url(f"{served.url}/")


def go(page: Any, served: Open, path: str) -> None:
    page.goto(served.url + path)
    page.locator("#live", has_text="Live").wait_for()


def choose(page: Any, file: Path) -> None:
    """Give the page a file once it offers that, and wait until its text is there."""
    chooser = page.get_by_label("Read it from a file")
    page.locator(":root.scripted").wait_for()  # the page's script listens; before, style sheets may be missing too
    chooser.wait_for()  # to be seen
    chooser.set_input_files(file)
    # Not by a function, which the page's content security policy lets no one evaluate once more.
    sync_api.expect(page.locator("#run-toml")).to_have_value(file.read_text(), timeout=1000 * PATIENCE_S)


def press_until(page: Any, wanted: str) -> None:
    """Tab until what is wanted has the focus, as a person without a mouse does."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.locator(f"{wanted}:focus").count():
            return
    raise AssertionError(f"the keyboard does not reach {wanted}")


def test_link_logs_in_once_and_leaves_no_token_behind(browser: Any, page: Any, coordinator: Coordinator) -> None:
    link = coordinator.served.link
    page.goto(link)
    page.wait_for_url(f"{coordinator.served.url}/")
    assert page.locator("h1").inner_text() == "Overview"
    assert "#" not in page.url
    page.go_back()
    assert "#" not in page.url
    with browser.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE_S)
        other = context.new_page()
        other.goto(link)
        other.locator("[role=alert]", has_text="was used").wait_for()


def test_run_is_followed_live_without_a_reload(page: Any, coordinator: Coordinator) -> None:
    log_in(page, coordinator.served)
    go(page, coordinator.served, f"/runs/{RUN.hash}")
    page.evaluate("document.documentElement.dataset.same = 'yes'")
    page.locator("summary", has_text="Dice").click()
    page.locator("a", has_text="Sites").focus()
    assert page.locator("#said").inner_text().startswith("Running: round 5 of 8 done")
    coordinator_records.play_round(coordinator.journal, RUN, 6)
    page.locator("#said", has_text="round 6 of 8 done").wait_for()
    page.locator("#rounds h3", has_text="Round 6").wait_for()
    assert page.evaluate("document.documentElement.dataset.same") == "yes"
    assert page.locator("#course details").first.get_attribute("open") is not None
    assert page.locator("a:focus").inner_text() == "Sites"
    assert page.locator("#course figure").first.locator("circle").count() == 6 * 3 - 1 - 1 + 1
    coordinator.registry.close(RUN.hash, "failed", "no quorum")
    page.locator("#said", has_text="Failed").wait_for()


def test_what_a_person_has_begun_is_not_taken_away(page: Any, coordinator: Coordinator) -> None:
    log_in(page, coordinator.served)
    go(page, coordinator.served, f"/runs/{RUN.hash}")
    page.get_by_label("Stop it, signed by admin").check()
    coordinator_records.play_round(coordinator.journal, RUN, 6)
    page.locator("#rounds h3", has_text="Round 6").wait_for()
    assert page.get_by_label("Stop it, signed by admin").is_checked()
    assert "There is news" in page.locator("#live").inner_text()


def test_run_is_stopped_by_keyboard_alone(page: Any, coordinator: Coordinator) -> None:
    log_in(page, coordinator.served)
    go(page, coordinator.served, f"/runs/{RUN.hash}")
    press_until(page, "button.danger")
    page.keyboard.press("Enter")
    page.locator("input[type=checkbox]:focus").wait_for()  # it is to be ticked first
    assert coordinator.registry.proposal(RUN.hash).state == "running"
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator(".told", has_text="is stopped").wait_for()
    assert coordinator.registry.proposal(RUN.hash).state == "stopped"


def test_run_is_approved_by_keyboard_alone(page: Any, hospital: Hospital) -> None:
    log_in(page, hospital.served)
    page.locator("#live", has_text="Live").wait_for()
    press_until(page, f"#waiting a[href$='{hospital.run}']")
    page.keyboard.press("Enter")
    page.locator("h2", has_text="What it would mean here").wait_for()
    press_until(page, "input[type=checkbox]")
    page.keyboard.press("Space")
    press_until(page, "#answer button")
    page.keyboard.press("Enter")
    page.locator(".told", has_text="Approved lesions-2026").wait_for()
    answer = approvals.load(hospital.home, hospital.run).answer
    assert answer is not None
    assert (answer.approved, answer.by) == (True, "person")


def test_run_is_proposed_from_a_file_and_signed_after_it_was_read(
    page: Any, coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "is_running", lambda _home: True)
    file = tmp_path / "run.toml"
    file.write_text(TOML.replace("epsilon = 8.0", "epsilon = -8.0"))
    log_in(page, coordinator.served)
    page.get_by_role("link", name="Propose").click()
    choose(page, file)
    page.get_by_role("button", name="Look at it").click()
    page.locator("#fault", has_text="target-epsilon").wait_for()
    assert page.get_by_role("button", name="Propose the run").count() == 0
    text = page.locator("#run-toml")
    assert text.input_value() == file.read_text()  # to be set right here
    text.fill(TOML)
    coordinator_records.play_round(coordinator.journal, RUN, 6)  # news, which changes nothing here
    page.locator("#live", has_text="Last change").wait_for()
    assert text.input_value() == TOML
    page.get_by_role("button", name="Look at it").click()
    page.locator("#meaning", has_text="epsilon 8 for one patient").wait_for()
    known = {one.run_hash for one in coordinator.registry.proposals()}
    page.get_by_role("button", name="Propose the run").click()
    page.locator("input[type=checkbox]:focus").wait_for()  # it is to be ticked first
    assert {one.run_hash for one in coordinator.registry.proposals()} == known
    page.keyboard.press("Space")
    press_until(page, "#sign button")
    page.keyboard.press("Enter")
    page.locator(".told", has_text="Proposed nodules-2026").wait_for()
    (new,) = [one for one in coordinator.registry.proposals() if one.run_hash not in known]
    assert (new.run_hash, new.state) == (coordinator_records.document("nodules-2026").hash, "proposed")
    assert page.locator("#run-toml").input_value() == ""


def test_file_is_read_after_the_page_took_over_news(page: Any, coordinator: Coordinator, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(TOML)
    log_in(page, coordinator.served)
    go(page, coordinator.served, "/propose")
    coordinator_records.play_round(coordinator.journal, RUN, 6)
    page.locator("#live", has_text="Last change").wait_for()
    choose(page, file)


def test_new_proposal_shows_up_by_itself(page: Any, hospital: Hospital) -> None:
    log_in(page, hospital.served)
    page.locator("#live", has_text="Live").wait_for()
    site_records.propose(hospital.home, site_records.a_run("vessels"))
    page.locator("#waiting", has_text="vessels").wait_for()
    page.locator("#said", has_text="2 runs wait").wait_for()


def test_all_can_be_read_and_done_without_a_script(browser: Any, hospital: Hospital) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        context.set_default_timeout(1000 * PATIENCE_S)
        page = context.new_page()
        link = hospital.served.link
        page.goto(link)
        page.get_by_label("What stands behind").fill(link.partition("#")[2])
        page.get_by_role("button", name="Log in").click()
        for label in ("Runs", "Ledger", "What left", "Data", "Overview"):
            page.get_by_role("link", name=label, exact=True).click()
            page.locator("h1", has_text=label).wait_for()
            assert "Reload the page" in page.locator("#live").inner_text()
        page.get_by_role("link", name="lesions-2026").click()
        page.get_by_label("I have read").check()
        page.get_by_role("button", name="Approve the run").click()
        assert "Approved lesions-2026" in page.locator(".told").inner_text()
        page.get_by_role("button", name="Log out").click()
        page.locator("#token").wait_for()


def pages_of(coordinator: Coordinator, hospital: Hospital) -> Iterator[tuple[Open, str]]:
    yield from ((coordinator.served, path) for path in ("/", "/runs", "/sites", f"/runs/{RUN.hash}", "/propose"))
    paths = ("/", "/runs", "/ledger", "/left", "/data", f"/runs/{hospital.run}")
    yield from ((hospital.served, path) for path in paths)


def test_axe_finds_nothing_and_no_page_is_wider_than_a_phone(
    browser: Any, coordinator: Coordinator, hospital: Hospital
) -> None:
    """320 px are a phone, and a window of 1280 px at 400 %: WCAG 2.2, 1.4.10."""
    with browser.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE_S)
        page = context.new_page()
        for served in (coordinator.served, hospital.served):
            page.goto(served.link)
            page.locator("h1", has_text="Overview").wait_for()
        go(page, coordinator.served, "/propose")
        page.locator("#run-toml").fill(TOML)
        page.get_by_role("button", name="Look at it").click()
        page.locator("h2", has_text="What would be proposed").wait_for()
        looked = 0
        for served, path in pages_of(coordinator, hospital):
            go(page, served, path)
            for details in page.locator("summary").all():
                details.click()
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                # Only colours differ in the dark.
                found = axe.Axe().run(page, options={"runOnly": ["color-contrast"]} if scheme == "dark" else None)
                assert found.violations_count == 0, found.generate_report()
                assert found.response["passes"]
            for width in (320, 640):
                page.set_viewport_size({"width": width, "height": 800})
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{path} is {wide} px wide"
            page.set_viewport_size({"width": 1280, "height": 800})
            looked += 1
        page.goto(f"{coordinator.served.url}/nothing")
        assert axe.Axe().run(page).violations_count == 0
        page.context.clear_cookies()
        page.goto(f"{coordinator.served.url}/login")
        assert axe.Axe().run(page).violations_count == 0
        assert looked == 11


@dataclass
class Eavesdropper:
    """A server of another account on this machine, which the browser is led to."""

    page: str = ""
    heard: list[str] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def eavesdropper() -> Iterator[Eavesdropper]:
    one = Eavesdropper()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one.heard.append(str(self.headers))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(one.page.encode())

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        one.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield one
        server.shutdown()


def test_server_on_another_port_hears_no_cookie_and_no_address(
    page: Any, hospital: Hospital, eavesdropper: Eavesdropper
) -> None:
    """Cookies know no ports, and SameSite takes both for one site: the place in the path keeps them apart."""
    log_in(page, hospital.served)
    place = hospital.served.sessions.place
    page.evaluate(f"location.href = 'http://127.0.0.1:{eavesdropper.port}/'")
    page.wait_for_url(f"http://127.0.0.1:{eavesdropper.port}/")
    page.reload()
    assert len(eavesdropper.heard) >= 2
    for headers in eavesdropper.heard:
        assert "Cookie" not in headers
        assert place not in headers
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", f"/{place}/")


def test_page_of_another_port_that_knew_the_place_could_neither_answer_nor_show_a_run(
    browser: Any, hospital: Hospital, eavesdropper: Eavesdropper
) -> None:
    url = f"{hospital.served.url}/runs/{hospital.run}"
    eavesdropper.page = (
        f"<iframe src='{url}'></iframe><form method=post action='{url}/deny'><input name=csrf value=x></form>"
        f"<script>fetch('{url}', {{credentials: 'include'}}).then(a => a.text()).then(t => document.title = t, "
        "e => document.title = 'kept out')</script>"
    )
    with browser.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE_S)
        page = context.new_page()
        log_in(page, hospital.served)
        page.goto(f"http://127.0.0.1:{eavesdropper.port}/")
        sync_api.expect(page).to_have_title("kept out", timeout=1000 * PATIENCE_S)
        assert "What it would mean" not in str([frame.content() for frame in page.frames])
        with page.expect_navigation():
            page.evaluate("document.forms[0].submit()")
        assert "Another page asked for this" in page.content()
    assert approvals.load(hospital.home, hospital.run).answer is None


def test_figures_of_the_docs_are_made_of_these_pages(
    page: Any, coordinator: Coordinator, hospital: Hospital, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor, "is_running", lambda _home: True)
    folder = FIGURES if os.environ.get("WARDROUND_FIGURES") else tmp_path
    shots = {
        "coordinator": (coordinator.served, f"/runs/{RUN.hash}"),
        "site": (hospital.served, f"/runs/{hospital.run}"),
    }
    for name, (served, path) in shots.items():
        log_in(page, served)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            go(page, served, path)
            page.screenshot(path=folder / f"dashboard-{name}-{scheme}.jpg", type="jpeg", quality=70, full_page=True)
    assert {path.name for path in FIGURES.glob("dashboard-*.jpg")} >= {
        f"dashboard-{name}-{scheme}.jpg" for name in shots for scheme in ("light", "dark")
    }
