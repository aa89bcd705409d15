"""Who may speak to the page's server."""

import pytest
from helpers.pages import ORIGIN, PORT, TOKEN, client, photographs

from kd_convnext.page.app import Parts
from kd_convnext.page.guard import MAX_BODY, Access
from kd_convnext.page.marking import Marking


@pytest.fixture
def parts(tmp_path):
    photographs(tmp_path / "photos", 2)
    return Parts(Marking(tmp_path / "photos", tmp_path / "cache"))


def test_without_the_token_nothing_but_the_health_check_is_heard(parts):
    with client(parts, entered=False) as browser:
        for path in ("/", "/api/state", "/static/main.js", "/api/mark/photographs", "/openapi.json", "/nothing"):
            assert browser.get(path).status_code == 401, path
        assert browser.get("/", params={"token": TOKEN[:-1]}).status_code == 403
        assert browser.get("/api/state", params={"token": TOKEN}).status_code == 401
        assert browser.get("/healthz").json() == {"status": "ok"}


def test_the_token_becomes_a_strict_cookie_and_leaves_the_address(parts):
    with client(parts, entered=False) as browser:
        answer = browser.get("/", params={"token": TOKEN}, follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"kd_convnext_{PORT}=") and TOKEN not in cookie
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        assert browser.get("/api/state").status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8734"])
def test_another_site_cannot_use_the_cookie(parts, origin):
    with client(parts) as browser:
        change = {"client": "c", "image": "p0000.png", "version": "", "regions": []}
        for answer in (
            browser.put("/api/mark/regions", json=change, headers={"origin": origin}),
            browser.get("/api/mark/photographs", headers={"origin": origin}),
        ):
            assert answer.status_code == 403 and "Another site" in answer.text


def test_a_request_marked_as_foreign_by_the_browser_is_refused(parts):
    with client(parts) as browser:
        del browser.headers["origin"]
        for kind in ("cross-site", "same-site"):
            assert browser.get("/api/state", headers={"sec-fetch-site": kind}).status_code == 403
        assert browser.get("/api/state", headers={"sec-fetch-site": "same-origin"}).status_code == 200
        assert browser.post("/api/mark/undo", json={"client": "c"}).status_code == 403  # no Origin, no Bearer


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", f"127.0.0.1.evil.example:{PORT}", ""])
def test_a_foreign_name_of_this_machine_is_refused(parts, host):
    with client(parts) as browser:
        assert browser.get("/api/state", headers={"host": host, "origin": f"http://{host}"}).status_code == 403


def test_a_server_for_others_is_reached_by_any_name_with_the_token(parts):
    with client(parts, entered=False, access=Access(TOKEN, PORT, local=False)) as browser:
        bearer = {"host": "hospital.example", "authorization": f"Bearer {TOKEN}"}
        assert browser.get("/api/state", headers=bearer).status_code == 200
        assert browser.get("/api/state", headers={"host": "hospital.example"}).status_code == 401
        assert browser.get("/api/state", headers=bearer | {"authorization": "Bearer no"}).status_code == 401


def test_every_answer_forbids_foreign_content(parts):
    with client(parts) as browser:
        for path in ("/", "/static/main.js", "/api/state"):
            headers = browser.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_too_large_a_request_is_answered_with_a_line_and_the_server_lives(parts):
    def pieces():
        for _ in range(MAX_BODY // 2**20 + 1):
            yield bytes(2**20)

    with client(parts) as browser:
        for content in (bytes(MAX_BODY + 1), pieces()):
            answer = browser.put("/api/mark/classes", content=content)
            assert answer.status_code == 413 and "64 MB" in answer.json()["findings"][0]["what"]
        assert browser.get("/healthz").status_code == 200


def test_no_file_outside_the_static_folder_is_served(parts):
    with client(parts) as browser:
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
            assert browser.get(path).status_code in (404, 405)


def test_the_origin_of_the_page_itself_is_right(parts):
    with client(parts) as browser:
        assert browser.headers["origin"] == ORIGIN
        assert browser.post("/api/mark/undo", json={"client": "c"}).status_code == 409
