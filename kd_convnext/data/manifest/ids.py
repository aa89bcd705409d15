"""Normalises ids of lesions and patients that spreadsheets have spelt differently."""

import hashlib
import re
import unicodedata
import warnings

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.errors import ManifestWarning

ID_COLUMNS = {"lesion_id": "lesion", "patient_id": "patient"}
"""Columns of ids, and what each id names."""

UNKNOWN = frozenset(
    {"na", "n/a", "n.a.", "nan", "none", "null", "nil", "unknown", "unk", "missing", "not available"}
    | {"<na>", "nat", "undefined", "unbekannt", "inconnu", "desconocido", "k.a.", "#na"}
)
"""Words that say that an id is not known, in lower case, without blanks after a point: they would join strangers."""

_CELL_ERROR = re.compile(r"#[^\d\s]+(?:/0)?[!?]|#[^\W\d]/[^\W\d]|#nv|err:\d+")
"""Errors of spreadsheets in any language: #REF!, #BEZUG!, #NOM?, #DIV/0!, #N/A, #N/D, #NV, Err:502."""

_SIGNS = re.compile(r"[\W_]+")

_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_WHOLE = re.compile(r"^([0-9]+)\.0+$")
_APART = re.compile(r"[\W_]+")
_JOINT = re.compile(r"(?<=[^\W\d_]) (?=\d)|(?<=\d) (?=[^\W\d_])")
_NAMED = 3


def normal_id(text: str) -> str:
    """Normalises an id for comparison: what a person reads as one.

    That is Unicode form, capitals, blanks, invisible characters, kinds of dashes and of digits, leading zeros and a
    trailing ".0".

    Args:
        text: As written: "Läsion 007", "12.0".

    Returns:
        The same for all spellings of one id: "läsion 7", "12".
    """
    text = "".join(map(_read, unicodedata.normalize("NFKC", text).casefold()))
    text = " ".join(text.split())
    return _ZEROS.sub("", _WHOLE.sub(r"\1", unicodedata.normalize("NFC", text)))


def _read(mark: str) -> str:
    """Returns a character as a person reads it: nothing of an invisible one, any dash as "-", any digit as 0 to 9."""
    kind = unicodedata.category(mark)
    return "" if kind == "Cf" else "-" if kind == "Pd" else str(unicodedata.decimal(mark)) if kind == "Nd" else mark


def is_cell_error(text: str) -> bool:
    """Tells whether a text is an error that a spreadsheet writes in place of a value.

    Args:
        text: In any capitals.
    """
    return _CELL_ERROR.fullmatch(text.casefold()) is not None


def is_unknown(normal: str) -> bool:
    """Tells whether an id names nobody: a word of `UNKNOWN`, signs alone, or an error of a spreadsheet.

    Args:
        normal: See `normal_id`.
    """
    return normal.replace(". ", ".") in UNKNOWN or _SIGNS.fullmatch(normal) is not None or is_cell_error(normal)


def _without_marks(name: str) -> str:
    """Returns a normalised id without blanks and punctuation, but for those that part two numbers or two words."""
    return _JOINT.sub("", _APART.sub(" ", name).strip())


def tidy_ids(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Normalises the spelling of ids, and reads words such as "NA" as no id; warns of both.

    Args:
        table: Columns lesion_id and patient_id as written, "" where none.
        place: The manifest's name, for the warnings.

    Returns:
        A copy: of several spellings of one id the first of the alphabet is kept.
    """
    tidied = table.copy()
    for column, word in ID_COLUMNS.items():
        written = pd.Series(sorted(set(table[column]) - {""}), dtype=object)
        normal = written.map(normal_id)
        unknown = normal.map(is_unknown).astype(bool)
        first = written.groupby(normal).transform("first").astype(object).mask(unknown, "")
        spelling = dict(zip(written, first, strict=True)) | {"": ""}
        tidied[column] = table[column].map(spelling)
        if unknown.any():
            rows = int(table[column].isin(list(written[unknown])).sum())
            names = ", ".join(repr(name) for name in written[unknown])
            message = f"{place}: {names} as {column} in {counted(rows, 'row')}: taken as unknown"
            warnings.warn(message, ManifestWarning, stacklevel=4)
        several = written[~unknown].groupby(normal[~unknown]).agg(list)
        several = several[several.map(len) > 1]
        if len(several):
            examples = "; ".join(" = ".join(repr(name) for name in names) for names in several.iloc[:_NAMED])
            more = "; ..." if len(several) > _NAMED else ""
            message = (
                f"{place}: {counted(len(several), f'{word} id')} spelt in several ways, taken for one: {examples}{more}"
            )
            warnings.warn(message, ManifestWarning, stacklevel=4)
        alike = written[~unknown].groupby(normal[~unknown].map(_without_marks)).agg(list)
        alike = alike[alike.map(lambda names: len({normal_id(name) for name in names}) > 1)]
        if len(alike):
            examples = ", ".join(" and ".join(repr(name) for name in names) for names in alike.iloc[:_NAMED])
            more = ", ..." if len(alike) > _NAMED else ""
            what = "ids that differ in blanks and punctuation alone are taken for different ones"
            message = f"{place}: {word} {what}: {examples}{more}: are they? If not, spell them alike"
            warnings.warn(message, ManifestWarning, stacklevel=4)
    return tidied


def hidden_ids(frame: pd.DataFrame, salt: str, *, images: bool = False) -> pd.DataFrame:
    """Replaces ids of lesions and patients by salted hashes, for tables that leave the machine.

    Args:
        frame: A table, with the columns lesion_id and patient_id or without.
        salt: Different for each set of photographs and not sent along (`units.salt_of`).
        images: Replace the names of the files (column image) as well: they are often made of ids.

    Returns:
        A copy; spellings of one id have one hash, "" stays.
    """
    found = frame.copy()
    for column, word in ID_COLUMNS.items():
        if column in found:
            found[column] = [hidden(f"{word}:{normal_id(value)}", salt) if value else "" for value in found[column]]
    if images and "image" in found:
        found["image"] = [hidden(f"image:{name}", salt) for name in found["image"]]
    return found


def hidden(name: str, salt: str) -> str:
    """Hashes a name with a salt, for tables that leave the machine.

    Args:
        name: With its kind: ``lesion:L7``.
        salt: See `hidden_ids`.
    """
    return hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()[:12]
