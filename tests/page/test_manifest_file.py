"""Changes of a manifest's rows: nothing else in the file moves."""

import stat
import unicodedata
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kd_convnext.data.manifest.boxes import Box, box_of
from kd_convnext.data.manifest.checks import parse_boxes
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import ConfigError, ManifestError
from kd_convnext.page import manifest_file
from kd_convnext.page.manifest_file import ConflictError, ManifestFile, Region


def manifest(tmp_path, text, name="manifest.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return ManifestFile(path)


def change(file, image, *regions):
    return file.replace(image, file.read().version(image), regions)


ODD = (
    "\ufeffImage, Label ,operator,x,y,width,height\r\n"
    'a.jpg,Grade 1,"Müller, J.",1,2,3,4\r\n'
    '"b.jpg","AIS","said ""no""",,,,\r\n'
    "\r\n"
    'a.jpg,"Grade 2",Meier,5,6,7,8\r\n'
    "c.jpg,MIA,Meier,1,1,2,2"
)


def test_unknown_columns_and_untouched_rows_keep_every_byte(tmp_path):
    file = manifest(tmp_path, ODD)
    first, _ = file.read().regions("a.jpg")
    assert (first.label, first.box) == ("Grade 1", Box(1, 2, 3, 4))
    change(file, "a.jpg", first, Region("MIA", box=Box(9, 6, 7, 8), place=1))
    lines, old = file.path.read_bytes().split(b"\r\n"), ODD.encode().split(b"\r\n")
    assert lines[:4] == old[:4] and lines[5] == old[5]
    assert lines[4] == b"a.jpg,MIA,Meier,9,6,7,8"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("start", ["sep=;\r\n", '"sep=;"\r\n\r\n', "\r\n", " \r\n;;;\r\n", "sep=|\r\n"])
def test_what_stands_before_the_header_stays(tmp_path, start, mark):
    """As `prepare` reads it: a line that names the separator, blank lines."""
    text = mark + start + 'image;label;"no,t,e,s";x\r\na.jpg;AIS;;\r\nb.jpg;MIA;"said";\r\n\r\n'
    if "|" in start:
        text = text.replace(";", "|")
    file = manifest(tmp_path, text)
    found = file.read()
    lines = text.split("\r\n")
    assert [lines[record.line - 1][:5] for record in found.records] == ["a.jpg", "b.jpg"]
    (region,) = found.regions("a.jpg")
    change(file, "a.jpg", replace(region, label="MIA"))
    assert file.path.read_bytes().decode() == text.replace("AIS", "MIA")
    (region,) = found.regions("b.jpg")
    change(file, "b.jpg", replace(region, lesion_id="L1"))
    rest = "image;label;no,t,e,s;x;lesion_id\r\na.jpg;MIA;;;\r\nb.jpg;MIA;said;;L1\r\n"
    assert file.path.read_bytes().decode() == mark + start + rest.replace(";", "|" if "|" in start else ";")
    file.restore("b.jpg", file.read().version("b.jpg"), found.rows("b.jpg"))
    assert file.path.read_bytes().decode().startswith(mark + start)


def test_a_file_that_names_its_separator_alone_gets_a_header(tmp_path):
    file = manifest(tmp_path, "sep=;\r\n")
    assert not ManifestFile(file.path, "image=file").read().records
    change(file, "a.jpg", Region("AIS"))
    assert (
        file.path.read_bytes() == b"sep=;\r\nimage;label;lesion_id;patient_id;x;y;width;height\r\na.jpg;AIS;;;;;;\r\n"
    )


def test_a_new_row_follows_the_photographs_others_and_a_new_photograph_the_last(tmp_path):
    file = manifest(tmp_path, "image,label,stain\na.jpg,AIS,HE\nb.jpg,MIA,HE\n")
    change(file, "a.jpg", *file.read().regions("a.jpg"), Region("MIA", "L1", box=Box(1, 2, 3, 4)))
    change(file, "c.jpg", Region("AIS"))
    assert file.path.read_text().splitlines() == [
        "image,label,stain,lesion_id,x,y,width,height",
        "a.jpg,AIS,HE,,,,,",
        "a.jpg,MIA,,L1,1,2,3,4",
        "b.jpg,MIA,HE,,,,,",
        "c.jpg,AIS,,,,,,",
    ]


def test_columns_of_other_names_keep_them(tmp_path):
    file = manifest(tmp_path, "File;dx;stain;label\na.jpg;AIS;HE;old\nb.jpg;MIA;HE;old\n")
    with pytest.raises(ManifestError, match='give --columns "image=file"'):
        file.read()
    file = ManifestFile(file.path, "image=file,label=dx")
    assert [region.label for region in file.read().regions("a.jpg")] == ["AIS"]
    change(file, "a.jpg", Region("MIA", box=Box(1, 2, 3, 4), place=0))
    assert file.path.read_text().splitlines() == [
        "File;dx;stain;label;x;y;width;height",
        "a.jpg;MIA;HE;old;1;2;3;4",
        "b.jpg;MIA;HE;old;;;;",
    ]
    edges = ManifestFile(file.path, "image=file,label=dx,x=x,y=y,right=width,bottom=height")
    before = file.path.read_text()
    assert [region.label for region in edges.read().regions("a.jpg")] == ["MIA"]
    with pytest.raises(ConfigError, match="width and height, not with their far edges"):
        change(edges, "a.jpg", Region("AIS", place=0))
    assert file.path.read_text() == before


def test_a_region_that_is_not_named_is_deleted(tmp_path):
    file = manifest(tmp_path, "image,label\na.jpg,AIS\nb.jpg,MIA\n")
    change(file, "a.jpg")
    assert file.path.read_text() == "image,label\nb.jpg,MIA\n"


def test_a_photograph_is_found_under_the_accents_of_its_file(tmp_path):
    composed, apart = (unicodedata.normalize(form, "häut.jpg") for form in ("NFC", "NFD"))
    (tmp_path / apart).touch()
    file = manifest(tmp_path, f"image,label\n{composed},AIS\n")
    change(file, apart, Region("MIA", "", ""))
    assert file.path.read_text().splitlines()[1:] == [f"{apart},MIA"]


def test_a_missing_manifest_is_made(tmp_path):
    file = ManifestFile(tmp_path / "manifest.csv")
    change(file, "x/ä,b.jpg", Region("AIS", "L1", "P1", Box(0, 0, 5, 6)))
    head = "image,label,lesion_id,patient_id,x,y,width,height\n"
    assert file.path.read_text() == f'{head}"x/ä,b.jpg",AIS,L1,P1,0,0,5,6\n'
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_second_persons_change_of_the_photograph_is_refused(tmp_path):
    file, other = manifest(tmp_path, "image,label\na.jpg,AIS\nb.jpg,MIA\n"), ManifestFile(tmp_path / "manifest.csv")
    version = file.read().version("a.jpg")
    change(other, "a.jpg", Region("MIA", place=0))
    with pytest.raises(ConflictError, match="by somebody else"):
        file.replace("a.jpg", version, [Region("Grade 1", place=0)])
    assert file.path.read_text() == "image,label\na.jpg,MIA\nb.jpg,MIA\n"
    change(other, "b.jpg", Region("AIS", place=0))  # another photograph is no conflict
    change(file, "a.jpg", Region("Grade 1", place=0))
    assert file.path.read_text() == "image,label\na.jpg,Grade 1\nb.jpg,AIS\n"


def test_a_change_while_the_file_is_written_is_noticed(tmp_path, monkeypatch):
    file = manifest(tmp_path, "image,label\na.jpg,AIS\n")
    version = file.read().version("a.jpg")
    original = manifest_file._changed

    def meanwhile(*words):
        file.path.write_text("image,label\na.jpg,MIA\nz.jpg,AIS\n")
        return original(*words)

    monkeypatch.setattr(manifest_file, "_changed", meanwhile)
    with pytest.raises(ConflictError, match="same moment"):
        file.replace("a.jpg", version, [Region("Grade 3", place=0)])
    assert file.path.read_text() == "image,label\na.jpg,MIA\nz.jpg,AIS\n"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_restored_rows_have_their_unknown_columns_again(tmp_path):
    file = manifest(tmp_path, "image,label,note\na.jpg,AIS,one\nb.jpg,MIA,two\na.jpg,MIA,three\n")
    text, before = file.path.read_text(), file.read().rows("a.jpg")
    after = change(file, "a.jpg").version("a.jpg")
    file.restore("a.jpg", after, before)
    assert sorted(file.path.read_text().splitlines()) == sorted(text.splitlines())
    changed = change(file, "a.jpg", Region("Grade 1", "L1", place=0), Region("MIA", place=1))
    file.restore("a.jpg", changed.version("a.jpg"), before)
    assert [file.read().value(row, "note") for row in file.read().rows("a.jpg")] == ["one", "three"]
    assert [region.label for region in file.read().regions("a.jpg")] == ["AIS", "MIA"]


def test_mode_and_link_of_the_file_stay(tmp_path):
    real = manifest(tmp_path, "image,label\na.jpg,AIS\n", "real.csv").path
    real.chmod(0o640)
    link = tmp_path / "manifest.csv"
    link.symlink_to(real)
    change(ManifestFile(link), "a.jpg", Region("MIA", place=0))
    assert link.is_symlink() and real.read_text() == "image,label\na.jpg,MIA\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("text", "word"),
    [(b"image,label\n\xff,AIS\n", "UTF-8"), ("file,label\na,b\n", "'image'"), ('image\n"a\n', "not CSV")],
)
def test_what_is_no_manifest_is_refused(tmp_path, text, word):
    with pytest.raises(ManifestError, match=word):
        manifest(tmp_path, text).read()


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8).map(str.strip)


@given(label=TEXT, lesion=TEXT, note=TEXT)
def test_any_text_comes_back_as_it_was_written(tmp_path_factory, label, lesion, note):
    file = ManifestFile(tmp_path_factory.mktemp("any") / "manifest.csv")
    change(file, "a.jpg", Region(label, lesion, box=Box(1, 2, 3, 4), more=(("note", note),)))
    change(file, "b.jpg", Region("AIS"))
    (found,) = file.read().regions("a.jpg")
    assert (found.label, found.lesion_id, found.box) == (label, lesion, Box(1, 2, 3, 4))
    assert file.read().value(file.read().rows("a.jpg")[0], "note") == note


def test_what_a_spreadsheet_would_run_is_written_inert_and_read_as_it_was(tmp_path):
    file = manifest(tmp_path, "image,label,remark\n")
    formula = "=HYPERLINK(1)"
    change(file, f"{formula}.jpg", Region(formula, "@lesion", "-patient"))
    assert file.path.read_text().splitlines()[1].startswith(f"'{formula}.jpg,'{formula},,'@lesion,'-patient")
    assert file.read().regions(f"{formula}.jpg") == [Region(formula, "@lesion", "-patient", place=0)]
    written = file.path.read_bytes()
    change(file, f"{formula}.jpg", *file.read().regions(f"{formula}.jpg"))
    assert file.path.read_bytes() == written
    Image.new("RGB", (30, 20)).save(tmp_path / f"{formula}.jpg")
    assert list(read_manifest(file.path, require_labels=False).table["label"]) == [formula]


BOXES = ("10,5;5;20;20", "10.7;5.2;20.6;20", "10.0;5;20;20", "1e1;5;20;20", "3;4;0,5;20", "?;5;20;20", "1;2;;4", ";;;")


def test_a_box_is_read_as_the_checks_read_it_and_another_change_leaves_its_text(tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    for text in BOXES:
        file = manifest(tmp_path, f"image;label;x;y;width;height\na.png;A;{text}\n")
        (region,) = file.read().regions("a.png")
        try:
            with warnings.catch_warnings(action="ignore"):
                read = read_manifest(file.path, require_labels=False)
            assert region.box == read.box(0), text
        except ManifestError:
            assert region.box is None, text
        change(file, "a.png", replace(region, label="B"))
        assert file.path.read_text() == f"image;label;x;y;width;height\na.png;B;{text}\n"
    change(file, "a.png", replace(region, box=Box(1, 2, 3, 4)))
    assert file.path.read_text().endswith("a.png;A;1;2;3;4\n")


def test_any_box_is_read_as_the_checks_read_it():
    numbers = np.random.default_rng(0).integers(-40, 400, (400, 4)) / np.array([1, 4, 10, 100]).repeat(100)[:, None]
    names = ("x", "y", "width", "height")
    with warnings.catch_warnings(action="ignore"):
        parsed, _ = parse_boxes(pd.DataFrame(numbers.astype(str), columns=names).assign(where="here"))
    for row, found in zip(numbers, parsed[[*names]].itertuples(index=False), strict=True):
        expected = None if pd.isna(found.x) else Box(*map(int, found))
        for comma in (False, True):
            texts = [str(number).replace(".", "," if comma else ".") for number in row]
            assert box_of(texts, decimal_comma=comma) == expected, texts
    assert 100 < parsed["x"].notna().sum() < 400
