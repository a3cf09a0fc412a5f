"""A dashboard over real sockets: what it shows to whom, and what it does not let itself be talked into."""

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from common.advice import Advice
from common.errors import ConfigError, FederationError
from common.pages.html import fragment
from common.web import connection, door, pages
from common.web.door import MOST_BYTES
from common.web.login import LINK_S, MOST_SESSIONS, SESSION_S, Sessions
from common.web.pages import MOST_STREAMS, Dashboard, Page, Visit
from tests import loopback
from tests.common.web.served import Answer, Open, Visitor, opened
from tests.patience import PATIENCE_S

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass
class Stage:
    """A dashboard with a page, an act and a stamp."""

    done: list[Mapping[str, str]] = field(default_factory=list)
    news: str = "first"
    fault: Exception | None = None
    served: Open = field(init=False)

    @property
    def sessions(self) -> Sessions:
        return self.served.sessions

    @property
    def port(self) -> int:
        return self.served.port

    def show(self, visit: Visit) -> Page:
        if self.fault is not None:
            raise self.fault
        text = f"{visit.path.get('run', 'overview')} {HOSTILE}"
        return Page("A page", fragment("common/web/message.html", text=text), "all is well")

    def act(self, visit: Visit, form: Mapping[str, str]) -> str:
        if self.fault is not None:
            raise self.fault
        self.done.append({**visit.path, **form})
        return f"done {HOSTILE}"

    def visitor(self) -> Visitor:
        return Visitor(self.port, f"/{self.sessions.place}")

    def logged_in(self) -> Visitor:
        visitor = self.visitor()
        assert visitor.log_in(self.sessions.token()).status == 303
        return visitor


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def stage(clock: list[float]) -> Iterator[Stage]:
    one = Stage()
    shown = Dashboard(
        name="Test",
        advice=Advice("wardround-client", " --home '/srv/a b'"),
        menu=(("Overview", "/"),),
        pages={"/": one.show, "/runs/{run}": one.show},
        acts={"/runs/{run}/stop": one.act},
        at_once={"/runs/{run}/deny": one.act},
        stamp=lambda: one.news,
    )
    with opened(shown, lambda: clock[0]) as served:
        one.served = served
        yield one


def raw(port: int, request: bytes) -> bytes:
    """What comes back, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as one:
        one.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(65536):
                answer += part
    return answer


def assert_says_nothing(answer: Answer) -> None:
    assert "A page" not in answer.text
    assert "alert" not in answer.text


def test_link_is_good_for_one_login(stage: Stage) -> None:
    token, visitor = stage.sessions.token(), stage.visitor()
    assert visitor.log_in(token).status == 303
    assert "A page" in visitor.get("/").text
    second = stage.visitor()
    answer = second.log_in(token)
    assert (answer.status, second.cookie) == (403, "")
    assert "wardround-client dashboard --link --home &#39;/srv/a b&#39;" in answer.text
    assert second.get("/").status == 303


def test_link_is_void_after_its_time_and_when_another_one_is_shown(stage: Stage, clock: list[float]) -> None:
    earlier = stage.sessions.token()
    token = stage.sessions.token()
    assert stage.visitor().log_in(earlier).status == 403
    clock[0] += LINK_S + 1
    assert stage.visitor().log_in(token).status == 403


@pytest.mark.parametrize("token", ["", "x", "x" * 43, "\u00e9"])
def test_guess_is_no_token_and_costs_the_link_nothing(stage: Stage, token: str) -> None:
    good = stage.sessions.token()
    assert stage.visitor().log_in(token).status == 403
    assert stage.visitor().log_in(good).status == 303


def test_cookie_is_for_this_place_alone_and_no_script_reads_it(stage: Stage) -> None:
    visitor = stage.visitor()
    said = visitor.log_in(stage.sessions.token()).headers["set-cookie"].lower()
    for part in ("httponly", "samesite=strict", f"path=/{stage.sessions.place.lower()}/"):
        assert part in said.split("; ")
    assert "domain" not in said


def test_session_ends_with_its_time_and_at_logout(stage: Stage, clock: list[float]) -> None:
    one, other = stage.logged_in(), stage.logged_in()
    csrf = one.get("/").csrf
    out = one.post("/logout", {"csrf": csrf})
    assert out.status == 303
    assert "max-age=0" in out.headers["set-cookie"].lower()
    assert one.get("/").status == 303
    assert other.get("/").status == 200
    clock[0] += SESSION_S + 1
    assert other.get("/").status == 303


def test_oldest_session_goes_where_there_are_too_many(stage: Stage) -> None:
    first = stage.logged_in()
    for _ in range(MOST_SESSIONS - 1):
        last = stage.logged_in()
    assert first.get("/").status == 200
    stage.logged_in()
    assert first.get("/").status == 303
    assert last.get("/").status == 200


@pytest.mark.parametrize("cookie", ["", "wardround=x", "other=1", "wardround", 'wardround="'])
def test_without_a_session_there_is_a_login_and_nothing_else(stage: Stage, cookie: str) -> None:
    visitor = stage.visitor()
    visitor.cookie = cookie
    for path in ("/", "/runs/abc", "/nothing"):
        answer = visitor.get(path)
        assert (answer.status, answer.headers["location"]) == (303, f"{visitor.base}/login")
        assert_says_nothing(answer)
    assert visitor.get("/events").status == 401
    assert visitor.post("/runs/abc/stop", {}).status == 401
    assert visitor.post("/logout", {}).status == 401
    assert stage.done == []
    assert visitor.get("/login").status == 200


def test_another_cookie_of_our_name_from_another_port_shuts_nobody_out(stage: Stage) -> None:
    visitor = stage.logged_in()
    visitor.cookie = f"wardround=planted; {visitor.cookie}; wardround=too"
    assert visitor.get("/").status == 200


@pytest.mark.parametrize("path", ["/", "/login", "/static/dashboard.css", "/PLACE", "/PLACEX/", "/xPLACE/", "//PLACE/"])
def test_who_does_not_know_the_place_finds_nothing(stage: Stage, path: str) -> None:
    visitor, token = stage.logged_in(), stage.sessions.token()
    asked = path.replace("PLACE", stage.sessions.place)
    answer = visitor.ask("GET", asked)
    assert (answer.status, answer.text) == (404, "There is nothing here.\n")
    body = f"token={token}".encode()
    assert visitor.ask("POST", asked, body, FORM | {"Origin": f"http://127.0.0.1:{stage.port}"}).status == 404
    assert stage.visitor().log_in(token).status == 303  # it was not used up


@pytest.mark.parametrize(
    "host",
    ["evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:PORT", "127.0.0.1:PORT.evil.example", ""],
)
def test_host_that_is_not_this_server_is_refused_before_all_else(stage: Stage, host: str) -> None:
    """A page whose own name was made to mean 127.0.0.1 sends its own name."""
    visitor = stage.logged_in()
    answer = visitor.get("/", {"Host": host.replace("PORT", str(stage.port))})
    assert answer.status in (400, 421)
    assert_says_nothing(answer)
    for good in ("127.0.0.1", "localhost", "LOCALHOST"):
        assert visitor.get("/", {"Host": f"{good}:{stage.port}"}).status == 200


def test_two_hosts_are_none(stage: Stage) -> None:
    visitor = stage.logged_in()
    head = f"GET {visitor.base}/ HTTP/1.1\r\nHost: 127.0.0.1:{stage.port}\r\nHost: evil.example\r\n"
    answer = raw(stage.port, f"{head}Cookie: {visitor.cookie}\r\nConnection: close\r\n\r\n".encode())
    assert answer.split()[1] in (b"400", b"421")
    assert b"A page" not in answer


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another account's server on this machine
        {"Origin": "http://localhost:PORT"},  # not the name that it was asked by
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_form_of_another_page_does_nothing(stage: Stage, headers: Mapping[str, str]) -> None:
    visitor = stage.logged_in()
    sent = {name: value.replace("PORT", str(stage.port)) for name, value in headers.items()}
    fields = {"csrf": visitor.get("/").csrf, "sure": "on"}
    assert visitor.post("/runs/abc/stop", fields, sent).status == 403
    assert stage.done == []
    assert visitor.post("/runs/abc/stop", fields).status == 303
    assert stage.done == [{"run": "abc", **fields}]


def test_form_without_an_origin_does_nothing(stage: Stage) -> None:
    visitor = stage.logged_in()
    body = f"csrf={visitor.get('/').csrf}"
    assert visitor.ask("POST", f"{visitor.base}/runs/abc/stop", body, FORM).status == 403
    assert stage.done == []


def test_form_without_this_sessions_secret_does_nothing(stage: Stage) -> None:
    visitor, other = stage.logged_in(), stage.logged_in()
    for csrf in ("", "x", other.get("/").csrf, "\u00e9"):
        assert visitor.post("/runs/abc/stop", {"csrf": csrf}).status == 403
    assert visitor.post("/runs/abc/stop", {}).status == 403
    assert stage.done == []


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_page_is_not_shown_to_another_page(stage: Stage, site: str) -> None:
    answer = stage.logged_in().get("/", {"Sec-Fetch-Site": site})
    assert answer.status == 403
    assert_says_nothing(answer)


def test_asking_with_get_does_nothing(stage: Stage) -> None:
    visitor = stage.logged_in()
    assert visitor.get("/runs/abc/stop").status == 404
    assert visitor.get("/logout").status == 404
    assert visitor.get("/").status == 200
    assert stage.done == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT"])
def test_other_methods_are_not_spoken(stage: Stage, method: str) -> None:
    visitor = stage.logged_in()
    assert visitor.ask(method, f"{visitor.base}/runs/abc/stop").status in (400, 404, 405)
    assert stage.done == []


def test_every_answer_says_what_a_browser_must_not_do(stage: Stage) -> None:
    visitor, stranger = stage.logged_in(), stage.visitor()
    answers = {
        "page": visitor.get("/"),
        "script": visitor.get("/static/dashboard.js"),
        "login": stranger.get("/login"),
        "to the login": stranger.get("/"),
        "nobody": stranger.get("/events"),
        "not found": visitor.get("/nothing"),
        "elsewhere": visitor.ask("GET", "/"),
        "host": visitor.get("/", {"Host": "evil.example"}),
        "other page": visitor.get("/", {"Sec-Fetch-Site": "cross-site"}),
        "wrong token": stranger.post("/login", {"token": "x"}),
    }
    assert sorted({one.status for one in answers.values()}) == [200, 303, 401, 403, 404, 421]
    for name, answer in answers.items():
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'", name
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_page_holds_no_script_and_loads_nothing_from_elsewhere(stage: Stage) -> None:
    visitor = stage.logged_in()
    for answer in (visitor.get("/"), stage.visitor().get("/login")):
        assert answer.text.count("<script") == 1
        assert f'<script src="{visitor.base}/static/dashboard.js" defer></script>' in answer.text
        assert "style=" not in answer.text
        assert "<style" not in answer.text
        for link in answer.links:
            assert link.startswith((f"{visitor.base}/", "#", "data:,"))
    for name in ("dashboard.css", "dashboard.js"):
        text = visitor.get(f"/static/{name}").text
        assert not any(word in text for word in ("http:", "https:", "//cdn", "@import", "url(", "innerHTML", "eval("))


def test_foreign_text_is_shown_and_not_obeyed(stage: Stage) -> None:
    visitor = stage.logged_in()
    csrf = visitor.get("/").csrf
    visitor.post("/runs/abc/stop", {"csrf": csrf, "sure": "on"})
    for answer in (visitor.get("/"), visitor.get("/runs/x"), visitor.get(f"/runs/{'%3Cscript%3E'}")):
        assert "<script>" not in answer.text
        assert "<img" not in answer.text
        assert "\u202e" not in answer.text
        assert "&lt;script&gt;alert(1)" in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../login.py",
        "/static/%2e%2e/login.py",
        "/static/..%2flogin.py",
        "/static//etc/passwd",
        "/static/%00",
        "/static/",
        "/static/dashboard.css/",
        "/static/dashboard.css%00.py",
        "/../../../../etc/passwd",
        "/runs/../../etc/passwd",
    ],
)
def test_no_path_leads_to_another_file(stage: Stage, path: str) -> None:
    visitor = stage.logged_in()
    answer = visitor.get(path)
    assert answer.status in (400, 404)
    assert "root:" not in answer.text
    assert "def " not in answer.text


def test_error_of_an_act_is_told_and_undoes_nothing(stage: Stage) -> None:
    visitor = stage.logged_in()
    csrf = visitor.get("/").csrf
    stage.fault = ConfigError(f"it is stopped already {HOSTILE}")
    answer = visitor.post("/runs/abc/stop", {"csrf": csrf, "sure": "on"})
    assert answer.status == 409
    assert "Not done" in answer.shown
    assert "it is stopped already" in answer.shown
    assert "<script>" not in answer.text


def test_act_needs_the_box_that_its_form_has_and_one_without_needs_none(stage: Stage) -> None:
    visitor = stage.logged_in()
    csrf = visitor.get("/").csrf
    answer = visitor.post("/runs/abc/stop", {"csrf": csrf})
    assert (answer.status, stage.done) == (409, [])
    assert "the box beside the button is not ticked" in answer.shown
    assert visitor.post("/runs/abc/deny", {"csrf": csrf}).status == 303
    assert stage.done == [{"run": "abc", "csrf": csrf}]


def test_what_was_done_is_said_once(stage: Stage) -> None:
    visitor = stage.logged_in()
    answer = visitor.post("/runs/abc/stop", {"csrf": visitor.get("/").csrf, "sure": "on"})
    assert (answer.status, answer.headers["location"]) == (303, f"{visitor.base}/runs/abc")
    assert "done &lt;script" in visitor.get("/runs/abc").text
    assert "done &lt;script" not in visitor.get("/runs/abc").text


def test_page_that_cannot_be_made_says_why(stage: Stage) -> None:
    visitor = stage.logged_in()
    stage.fault = FederationError("the registry is locked. Try again.")
    answer = visitor.get("/")
    assert (answer.status, "the registry is locked" in answer.shown) == (503, True)
    stage.fault = ConfigError("no run is called that")
    assert visitor.get("/runs/that").status == 404


def test_fault_of_ours_shows_nothing_of_it(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    visitor = stage.logged_in()
    stage.fault = RuntimeError("Doe^Jane at /srv/images")
    answer = visitor.get("/")
    assert answer.status == 500
    assert "Doe" not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text
    stage.fault = None
    assert visitor.get("/").status == 200


def test_neither_token_nor_cookie_nor_place_gets_into_a_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    token, visitor = stage.sessions.token(), stage.visitor()
    visitor.log_in(token)
    visitor.get("/")
    visitor.get(f"/nothing?{token}")
    raw(stage.port, f"GET {visitor.base}/{token} HTTP/1.1\r\n\r\n".encode())
    stage.fault = RuntimeError("x")
    visitor.get(f"/?{token}")
    for secret in (token, visitor.cookie.partition("=")[2], stage.sessions.place):
        assert secret not in caplog.text
        assert secret not in repr(vars(stage.sessions)["_sessions"])


def test_body_beyond_the_limit_is_not_read(stage: Stage) -> None:
    visitor = stage.logged_in()
    head = (
        f"POST {visitor.base}/runs/abc/stop HTTP/1.1\r\nHost: 127.0.0.1:{stage.port}\r\nCookie: {visitor.cookie}\r\n"
        f"Origin: http://127.0.0.1:{stage.port}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    )
    for length in (f"{MOST_BYTES + 1}", "99999999999999999999"):
        assert raw(stage.port, f"{head}Content-Length: {length}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    part = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + part * 3
    assert raw(stage.port, chunked).startswith(b"HTTP/1.1 413")
    assert stage.done == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("&".join(f"f{number}=1" for number in range(60)), 400),
        ("csrf=a&csrf=b", 400),
        (b"csrf=\xff", 400),
    ],
)
def test_form_that_is_no_form_of_ours_is_refused(stage: Stage, body: Any, status: int) -> None:
    visitor = stage.logged_in()
    headers = FORM | {"Origin": f"http://127.0.0.1:{stage.port}"}
    assert visitor.ask("POST", f"{visitor.base}/runs/abc/stop", body, headers).status == status
    json = {"Origin": headers["Origin"], "Content-Type": "application/json"}
    assert visitor.ask("POST", f"{visitor.base}/runs/abc/stop", "{}", json).status == 415
    assert stage.done == []


def test_header_beyond_the_limit_ends_the_connection(stage: Stage) -> None:
    head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{stage.port}\r\nX: ".encode()
    assert not raw(stage.port, head + b"a" * 200_000).startswith(b"HTTP/1.1 2")
    assert stage.logged_in().get("/").status == 200


def test_body_that_does_not_come_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = stage.logged_in()
    monkeypatch.setattr(door, "BODY_S", 0.3)
    head = (
        f"POST {visitor.base}/login HTTP/1.1\r\nHost: 127.0.0.1:{stage.port}\r\n"
        f"Origin: http://127.0.0.1:{stage.port}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    )
    assert raw(stage.port, f"{head}Content-Length: 10\r\n\r\nabc".encode()).startswith(b"HTTP/1.1 408")


def test_connections_that_ask_nothing_hold_no_place(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another account, which needs no token to connect."""
    visitor = stage.logged_in()
    monkeypatch.setattr(connection, "PATIENCE_S", 2.0)
    with contextlib.ExitStack() as opened:
        for _ in range(100):
            one = opened.enter_context(socket.create_connection(("127.0.0.1", stage.port), timeout=PATIENCE_S))
            one.sendall(b"GET / HT")
        for one in [opened.enter_context(socket.create_connection(("127.0.0.1", stage.port), timeout=PATIENCE_S))]:
            assert one.recv(10) == b""  # closed by the server
        assert visitor.get("/").status == 200


def test_it_listens_on_loopback_alone(stage: Stage) -> None:
    if not loopback.entered():
        pytest.skip("the kernel gave this run no network of its own")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((loopback.OTHER_ADDRESS, stage.port), timeout=PATIENCE_S)


def stream(visitor: Visitor) -> http.client.HTTPResponse:
    one = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=PATIENCE_S)
    one.request("GET", f"{visitor.base}/events", headers={"Cookie": visitor.cookie})
    return one.getresponse()


def stamps(answer: http.client.HTTPResponse, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count and (line := answer.readline().decode()):
        if line.startswith("data: "):
            found.append(line.removeprefix("data: ").strip())
    return found


def test_stream_tells_a_new_stamp_when_something_changed_and_nothing_else(stage: Stage) -> None:
    visitor = stage.logged_in()
    page = visitor.get("/")
    with stream(visitor) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        (first,) = stamps(answer, 1)
        assert f'data-stamp="{first}"' in page.text
        stage.news = f"second {HOSTILE}"
        (second,) = stamps(answer, 1)
    assert second != first
    assert set(second) <= set("0123456789abcdef")
    assert f'data-stamp="{second}"' in visitor.get("/").text


def test_stream_ends_with_the_session(stage: Stage) -> None:
    visitor = stage.logged_in()
    with stream(visitor) as answer:
        stamps(answer, 1)
        visitor.post("/logout", {"csrf": visitor.get("/").csrf})
        assert stamps(answer, 1) == []  # closed


def test_streams_leave_room_for_pages(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_STREAMS", 2)
    assert MOST_STREAMS < 64
    visitor = stage.logged_in()
    with stream(visitor) as one, stream(visitor) as other:
        stamps(one, 1)
        stamps(other, 1)
        assert visitor.get("/events").status == 503
        assert visitor.get("/").status == 200
