"""Marking photographs over HTTP."""

import io
import threading
import time

import pytest
from helpers.pages import client, encoded, photographs, picture
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.page.app import Parts
from kd_convnext.page.marking import Marking

BOX = {"x": 5, "y": 6, "width": 20, "height": 10}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    photographs(folder, 3)
    return folder


@pytest.fixture
def browser(photos, tmp_path):
    with client(Parts(Marking(photos, tmp_path / "cache"))) as found:
        yield found


def regions(browser, image):
    answer = browser.get("/api/mark/regions", params={"image": image})
    assert answer.status_code == 200, answer.text
    return answer.json()


def put(browser, image, *given, version=None, tab="tab"):
    version = regions(browser, image)["version"] if version is None else version
    content = {"client": tab, "image": image, "version": version, "regions": given}
    return browser.put("/api/mark/regions", json=content)


def test_a_region_is_in_the_manifest_at_once_and_prepare_reads_it(browser, photos, capsys):
    assert browser.get("/api/state").json()["model"] is None
    listed = browser.get("/api/mark/photographs").json()
    assert [name for name, _, _ in listed["photographs"]] == ["p0000.png", "p0001.png", "p0002.png"]
    assert listed["classes"] == ["Grade 1", "Grade 2", "Grade 3", "AIS", "MIA"]
    for number, label in enumerate(("Grade 1", "AIS", "AIS")):
        answer = put(browser, f"p000{number}.png", {"label": label, "lesion_id": f"L{number}", "box": BOX})
        assert answer.status_code == 200, answer.text
    lines = (photos / "manifest.csv").read_text().splitlines()
    assert lines[1] == "p0000.png,Grade 1,L0,,5,6,20,10"
    assert browser.get("/api/mark/checks").json() == {"findings": []}
    words = ["prepare", "--manifest", str(photos / "manifest.csv"), "--upscaler", "none", "--dry_run", "true"]
    assert main([*words, "--cache_dir", str(photos.parent / "crops")]) == 0


def test_two_browsers_see_each_other(browser, photos, tmp_path):
    with client(Parts(Marking(photos, tmp_path / "cache"))) as second:
        old = regions(second, "p0000.png")["version"]
        digest = browser.get("/api/mark/digest").json()
        assert put(browser, "p0000.png", {"label": "AIS", "box": BOX}).status_code == 200
        assert second.get("/api/mark/digest").json() != digest
        answer = put(second, "p0000.png", {"label": "MIA", "box": BOX}, version=old)
        assert answer.status_code == 409 and "somebody else" in answer.json()["findings"][0]["what"]
        assert regions(second, "p0000.png")["regions"][0]["label"] == "AIS"
        assert put(second, "p0001.png", {"label": "MIA", "box": BOX}).status_code == 200


def test_simultaneous_changes_of_different_photographs_all_arrive(browser, photos):
    photographs(photos, 24)

    def mark(number):
        assert put(browser, f"p{number:04d}.png", {"label": "AIS", "lesion_id": f"L{number}"}).status_code == 200

    threads = [threading.Thread(target=mark, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = (photos / "manifest.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[2] for row in rows) == sorted(f"L{number}" for number in range(24))


def test_undo_takes_back_ones_own_changes_in_turn(browser, photos):
    (photos / "manifest.csv").write_text("image,label,note\np0000.png,AIS,kept\n")
    put(browser, "p0000.png", {"label": "MIA", "place": 0})
    put(browser, "p0001.png", {"label": "AIS"}, tab="other")
    put(browser, "p0000.png")
    for label in ("MIA", "AIS"):
        answer = browser.post("/api/mark/undo", json={"client": "tab"})
        assert answer.status_code == 200, answer.text
        assert [region["label"] for region in answer.json()["regions"]] == [label]
    assert "p0000.png,AIS,kept" in (photos / "manifest.csv").read_text()
    assert browser.post("/api/mark/undo", json={"client": "tab"}).status_code == 409
    assert len(regions(browser, "p0001.png")["regions"]) == 1


def test_undo_never_takes_back_over_somebody_elses_change(browser, photos):
    put(browser, "p0000.png", {"label": "AIS"})
    put(browser, "p0000.png", {"label": "MIA", "place": 0}, tab="other")
    assert browser.post("/api/mark/undo", json={"client": "tab"}).status_code == 409
    assert regions(browser, "p0000.png")["regions"][0]["label"] == "MIA"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([{"box": BOX | {"width": 56}}], "inside"),
        ([{"box": BOX | {"x": -1}}], "inside"),
        ([{"box": BOX | {"height": 0}}], "inside"),
        ([{"box": BOX}, {"box": BOX}], "twice"),
        ([{"label": "a\nb"}], "printed"),
        ([{"box": BOX | {"x": 1.5}}], ""),
        ([{"label": "x" * 201}], ""),
        ([{"colour": "red"}], ""),
    ],
)
def test_what_prepare_would_refuse_is_refused_at_once(browser, photos, given, word):
    answer = put(browser, "p0000.png", *given)
    assert answer.status_code == 422 and word in answer.json()["findings"][0]["what"]
    assert not (photos / "manifest.csv").exists()


def test_the_checks_of_prepare_stand_at_their_photographs(browser, photos):
    (photos / "broken.jpg").write_bytes(b"text")
    rows = ["image,label,x,y,width,height", "p0000.png,AIS,1,1,500,5", "broken.jpg,MIA,,,,", "p0001.png,,,,,"]
    (photos / "manifest.csv").write_text("\n".join(rows) + "\n")
    found = browser.get("/api/mark/checks").json()["findings"]
    at = {entry["image"]: entry["what"] for entry in found}
    assert "outside" in at["p0000.png"] and "cannot be read" in at["broken.jpg"] and "empty" in at["p0001.png"]


def test_a_broken_file_is_shown_as_broken(browser, photos):
    (photos / "broken.jpg").write_bytes(b"text")
    whole = encoded(picture(400, 300), "JPEG")
    (photos / "half.jpg").write_bytes(whole[: len(whole) // 2])
    assert "not an image" in regions(browser, "broken.jpg")["problem"]
    for name in ("broken.jpg", "half.jpg"):
        answer = browser.get("/api/mark/thumbnail", params={"image": name})
        assert answer.status_code == 422 and "cannot be read" in answer.json()["findings"][0]["what"]


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "manifest.csv", "link/secret.png", "\0"],
)
@pytest.mark.parametrize("path", ["thumbnail", "photograph", "regions"])
def test_nothing_outside_the_folder_is_reached(browser, photos, name, path):
    picture().save(photos.parent / "secret.png")
    (photos / "link").symlink_to(photos.parent)
    answer = browser.get(f"/api/mark/{path}", params={"image": name})
    assert answer.status_code == 422 and b"PNG" not in answer.content


def test_photographs_are_turned_as_their_exif_says(browser, photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(80, 50).save(photos / "turned.jpg", exif=exif)
    picture(80, 50).save(photos / "turned.tif", exif=exif)
    for name in ("turned.jpg", "turned.tif"):
        assert (regions(browser, name)["width"], regions(browser, name)["height"]) == (50, 80)
        shown = browser.get("/api/mark/thumbnail", params={"image": name})
        small = Image.open(io.BytesIO(shown.content))
        assert small.height > small.width
    own = browser.get("/api/mark/photograph", params={"image": "turned.jpg"})
    assert own.content == (photos / "turned.jpg").read_bytes()
    whole = browser.get("/api/mark/photograph", params={"image": "turned.tif"})
    assert whole.headers["content-type"] == "image/png" and Image.open(io.BytesIO(whole.content)).size == (50, 80)


def test_a_photograph_that_xmp_alone_turns_is_seen_as_boxes_are_meant(browser, photos):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    whole = Image.new("RGB", (64, 32), "white")
    whole.paste((200, 0, 0), (0, 0, 32, 32))
    whole.save(photos / "turned.jpg", xmp=xmp)
    found = regions(browser, "turned.jpg")
    assert (found["width"], found["height"]) == (32, 64)
    for kind in ("photograph", "thumbnail"):
        seen = Image.open(io.BytesIO(browser.get(f"/api/mark/{kind}", params={"image": "turned.jpg"}).content))
        assert seen.size == (32, 64) and not Image.Exif.get(seen.getexif(), 274)
        assert seen.convert("RGB").getpixel((16, 8))[1] < 40 < 200 < seen.convert("RGB").getpixel((16, 56))[1]


def test_thumbnails_are_made_in_the_background_and_kept(photos, tmp_path):
    marking = Marking(photos, tmp_path / "cache")
    with client(Parts(marking)):
        end = time.monotonic() + 20
        while len([*(tmp_path / "cache").rglob("*.jpg")]) < 3 and time.monotonic() < end:
            time.sleep(0.02)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.jpg")}
    assert len(kept) == 3
    again = Marking(photos, tmp_path / "cache")
    again.thumbnails.of(photos / "p0000.png")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.jpg")} == kept
    picture(seed=9).save(photos / "p0000.png")  # another picture under the name has another thumbnail
    again.thumbnails.of(photos / "p0000.png")
    assert len([*(tmp_path / "cache").rglob("*.jpg")]) == 4


def test_thumbnails_kept_below_the_folder_are_no_photographs(photos):
    marking = Marking(photos, photos / "cache")
    listed = marking.photographs()["photographs"]
    assert marking.thumbnails.of(marking.folder.path(listed[0][0])) and list((photos / "cache").rglob("*.jpg"))
    assert marking.photographs()["photographs"] == listed


def test_classes_are_kept_for_the_manifest(browser, photos, tmp_path):
    assert browser.put("/api/mark/classes", json={"classes": ["benign", "<script>"]}).status_code == 200
    put(browser, "p0000.png", {"label": "other"})
    assert Marking(photos, tmp_path / "cache").classes() == ["benign", "<script>", "other"]
    for wrong in (["a", "a"], [""], ["x" * 90]):
        assert browser.put("/api/mark/classes", json={"classes": wrong}).status_code == 422


def test_progress_counts_lesions(browser):
    put(browser, "p0000.png", {"label": "AIS", "lesion_id": "L1", "box": BOX})
    put(browser, "p0001.png", {"label": "AIS", "lesion_id": "L1", "box": BOX})
    put(browser, "p0002.png", {"label": "AIS"}, {"label": "MIA", "box": BOX})
    found = {entry["label"]: entry for entry in browser.get("/api/mark/progress").json()["classes"]}
    assert (found["AIS"]["regions"], found["AIS"]["lesions"]) == (3, 2)
    assert (found["MIA"]["lesions"], found["MIA"]["for_split"], found["MIA"]["for_sets"]) == (1, 3, 90)


def test_a_photograph_named_like_a_script_is_only_a_name(browser, photos):
    name = "<script>alert(1)</script>.png".replace("/", "")
    picture().save(photos / name)
    assert put(browser, name, {"label": "AIS", "box": BOX}).status_code == 200
    assert regions(browser, name)["regions"][0]["label"] == "AIS"
    for path in ("regions", "thumbnail"):
        assert "html" not in browser.get(f"/api/mark/{path}", params={"image": name}).headers["content-type"]
