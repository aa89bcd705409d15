"""DICOM photographs: colours, the modality's scale, windows and inversion, as a viewer shows them."""

import io

import numpy as np
import pytest
from helpers.dicom import dicom
from PIL import Image

from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import ManifestError

pytest.importorskip("pydicom")
ORANGE = np.full((16, 32, 3), (200, 90, 20), np.uint8)
STORED = np.tile(np.arange(0, 4096, 64).astype(np.uint16), (2, 1))


def grey(path, **values):
    return read_image(dicom(path, STORED, BitsStored=12, **values))[0, :, 0].astype(int)


def expected(values, low, high):
    return np.clip(np.rint((values.astype(float) - low) * 255 / (high - low)), 0, 255).astype(int)


def test_colours_in_ybr_are_converted_once(tmp_path):
    ybr = np.asarray(Image.fromarray(ORANGE).convert("YCbCr"))
    found = read_image(dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found.astype(int) - ORANGE).max() <= 2


@pytest.mark.parametrize("kind", ["YBR_FULL_422", "RGB"])
def test_colours_of_a_jpeg_inside_are_those_of_the_jpeg(tmp_path, kind):
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    content = io.BytesIO()
    Image.fromarray(ORANGE).save(content, "JPEG", quality=95, subsampling=1)
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm", ORANGE))
    data.file_meta.TransferSyntaxUID, data.PhotometricInterpretation = JPEGBaseline8Bit, kind
    data.PixelData = encapsulate([content.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.abs(read_image(tmp_path / "b.dcm").astype(int) - ORANGE).max() <= 4


@pytest.mark.parametrize("kind", ["HSV", "PALETTE COLOR", "YBR_PARTIAL_420"])
def test_unknown_kinds_of_colour_are_refused(tmp_path, kind):
    with pytest.raises(ManifestError, match=f"DICOM of the kind {kind} is not supported"):
        read_image(dicom(tmp_path / "a.dcm", ORANGE, PhotometricInterpretation=kind))


def test_the_window_is_of_rescaled_values(tmp_path):
    scale = {"RescaleSlope": 0.5, "RescaleIntercept": -1024}
    found = grey(tmp_path / "a.dcm", **scale, WindowCenter=40, WindowWidth=401)
    values = 0.5 * STORED[0] - 1024
    assert np.array_equal(found, expected(values, 39.5 - 200, 39.5 + 200))  # of the standard's linear function
    assert 0 < np.count_nonzero((found > 0) & (found < 255)) < 20


def test_a_negative_slope_inverts_with_and_without_a_window(tmp_path):
    scale = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    inverted = expected(4095 - STORED[0].astype(float), 0, 4095)
    assert np.array_equal(grey(tmp_path / "a.dcm", **scale), inverted)
    found = grey(tmp_path / "b.dcm", **scale, WindowCenter=1000.5, WindowWidth=1001)
    assert np.array_equal(found, expected(4095.0 - STORED[0], 500, 1500))


def test_scale_alone_changes_nothing_and_empty_values_are_none(tmp_path):
    plain = grey(tmp_path / "a.dcm")
    assert np.array_equal(plain, expected(STORED[0], 0, 4095))
    assert np.array_equal(grey(tmp_path / "b.dcm", RescaleSlope=0.0001, RescaleIntercept=-7), plain)
    nothing = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"), "")
    assert np.array_equal(grey(tmp_path / "c.dcm", **nothing), plain)
    with pytest.raises(ManifestError, match="RescaleSlope is 0"):
        grey(tmp_path / "d.dcm", RescaleSlope=0, RescaleIntercept=0)


def test_an_inverse_presentation_is_inverted_once(tmp_path):
    plain = grey(tmp_path / "a.dcm")
    assert np.array_equal(grey(tmp_path / "b.dcm", PresentationLUTShape="INVERSE"), 255 - plain)
    both = grey(tmp_path / "c.dcm", PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(both, 255 - plain)  # the standard asks for both together, and means one inversion


def test_tables_of_values_have_their_own_range(tmp_path):
    from pydicom.dataset import Dataset

    def table(bits, values):
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [len(values), 0, bits], [int(value) for value in values]
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        return [item]

    double, square = np.arange(4096) * 2, np.arange(8192) ** 2 // 1024
    found = grey(tmp_path / "a.dcm", ModalityLUTSequence=table(16, double))
    assert np.array_equal(found, expected(double[STORED[0]], 0, 65535))
    found = grey(tmp_path / "b.dcm", VOILUTSequence=table(16, square))
    assert np.array_equal(found, expected(square[STORED[0]], 0, 65535))
    found = grey(tmp_path / "c.dcm", VOILUTSequence=table(16, square), RescaleSlope=2, RescaleIntercept=0)
    assert np.array_equal(found, expected(square[2 * STORED[0].astype(int)], 0, 65535))


def test_a_file_without_a_picture_says_what_it_lacks(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ManifestError, match=r"cannot be read \(its DICOM lacks Rows"):
        read_image(tmp_path / "a.dcm")
