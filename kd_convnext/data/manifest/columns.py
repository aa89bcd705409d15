"""Finds the columns of a manifest by name or by the ``columns`` option; otherwise an error shows how to name them."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from kd_convnext.common.nearest import did_you_mean, nearest
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError, ManifestWarning

BOX_COLUMNS = ("x", "y", "width", "height")
TEXT_COLUMNS = ("image", "label", "lesion_id", "patient_id", *BOX_COLUMNS, "split")
CORNERS = ("right", "bottom")
"""Further edges of a box that ``columns`` may name in place of width and height."""
IGNORE = "ignore"
"""Word of ``columns`` for columns that are left out on purpose."""

IN_A_FIT = " (--data.columns in a fit)"
_OPTION = f"--columns{IN_A_FIT}"
_PATHS = (
    "file",
    "filename",
    "filepath",
    "path",
    "photo",
    "photograph",
    "img",
    "imagename",
    "imagepath",
    "imageid",
    "name",
    "datei",
    "dateiname",
    "bild",
    "foto",
)
_CLASSES = (
    *("diagnosis", "diagnostic", "dx", "class", "target", "category", "labels", "truth", "diagnose", "klasse"),
    *("groundtruth", "celltype", "lesiontype", "tissuetype", "type", "subtype", "species", "finding"),
)
_ALIASES = {"image": _PATHS, "label": _CLASSES}
_CORNER_NAMES = (
    *(("xmin", "ymin", "xmax", "ymax"), ("minx", "miny", "maxx", "maxy"), ("x0", "y0", "x1", "y1")),
    *(("x1", "y1", "x2", "y2"), ("xtl", "ytl", "xbr", "ybr"), ("xstart", "ystart", "xend", "yend")),
    ("left", "top", "right", "bottom"),
)
_SIZED_NAMES = tuple(
    (*corner, *size)
    for corner in (("x", "y"), ("left", "top"), ("xmin", "ymin"), ("minx", "miny"), ("x0", "y0"), ("x1", "y1"))
    for size in (("w", "h"), ("width", "height"))
)
_BOX_WORDS = frozenset(name for names in (*_CORNER_NAMES, *_SIZED_NAMES) for name in names) - set(BOX_COLUMNS)
_WHOLE_BOX = frozenset({"bbox", "box", "boundingbox", "roi", "rect", "polygon"})
_BEFORE_A_SIDE = re.compile(r"^(bbox|boundingbox|box|roi|crop|rect|region)(?=.)")
_LESION = r"(lesion|case|group|biopsy|specimen|mole|nevus|naevus|fall|grp)"
_PATIENT = r"(patient|pat|subject|person|individual|participant|mrn|pid)"
_SUFFIX = r"(id|ids|uid|no|nr|num|number|name|code|key|identifier)"
_GIVEN = re.compile(r'ive --columns "([^"]*)"')
_ID = re.compile(
    rf"^(({_LESION}|{_PATIENT}){_SUFFIX}?|(accession|study|exam|slide|block|tumou?r|sample|family){_SUFFIX})$"
)


def parse_columns(text: str | None) -> dict[str, str]:
    """Reads ``image=file,label=diagnosis``: our name, then the table's.

    Args:
        text: As given, None for nothing. ``right`` and ``bottom`` name the far edges of boxes; ``ignore=a`` leaves a
            column out on purpose.

    Returns:
        Our name of each of the table's columns, these in lower case.

    Raises:
        ConfigError: It is of another form, names an unknown column of ours, or one twice.
    """
    found: dict[str, str] = {}
    findings = []
    for pair in (text or "").split(","):
        ours, mark, theirs = (word.strip() for word in pair.partition("="))
        if not pair.strip():
            continue
        known = (*TEXT_COLUMNS, *CORNERS, IGNORE)
        if not (mark and theirs) or ours not in known:
            remedy = f"Write OURS=THEIRS with ours of {', '.join(known)}: image=file,label=diagnosis."
            what = f"{pair.strip()!r} names no column"
            findings.append(Finding(_OPTION, what, f"{did_you_mean(ours, known)}{remedy}"))
        elif theirs.lower() in found or (ours != IGNORE and ours in found.values()):
            findings.append(Finding(_OPTION, f"{pair.strip()!r} names a column twice", "Give each once."))
        else:
            found[theirs.lower()] = ours
    if findings:
        raise ConfigError(findings)
    return found


@contextmanager
def columns_given_by(option: str) -> Iterator[None]:
    """Names the option of a manifest's columns in the errors of its reading, where it is another than ``--columns``.

    Args:
        option: Such as ``--extra_columns``.

    Raises:
        KDConvNeXtError: What the reading raised.
    """

    def told(text: str) -> str:
        return text.replace(IN_A_FIT, "").replace("--columns", option)

    try:
        yield
    except KDConvNeXtError as error:
        findings = [Finding(told(one.where), told(one.what), told(one.remedy)) for one in error.findings]
        raise type(error)(findings) from error


def refuse_edges(columns: Mapping[str, str]) -> None:
    """Refuses other names for the far edges of boxes, where boxes are to be written.

    Args:
        columns: As `parse_columns` gives them.

    Raises:
        ConfigError: One names the right or the bottom edge.
    """
    edges = [f"{ours}={theirs}" for theirs, ours in columns.items() if ours in CORNERS]
    if edges:
        what = f"{', '.join(edges)}: boxes are written here with width and height, not with their far edges"
        raise ConfigError(Finding("--columns", what, "Give the manifest columns x, y, width and height."))


def rename(header: Sequence[str], chosen: Mapping[str, str], where: str) -> tuple[list[str], list[Finding]]:
    """Renames columns of a table to the manifest's names.

    Args:
        header: The table's names, in lower case.
        chosen: See `parse_columns`.
        where: The header's place, for findings.

    Returns:
        The names, and what was named but is not there. A column of our name that another was chosen for is left out.
    """
    findings = []
    for name in chosen:
        if name not in header:
            remedy = f"{did_you_mean(name, header)}The columns are {', '.join(header)}."
            findings.append(Finding(where, f"--columns names {name!r}, which is not there", remedy))
    taken = set(chosen.values())
    return [chosen.get(name, f"({name})" if name in taken else name) for name in header], findings


def lacking(header: Sequence[str], names: Sequence[str], where: str) -> list[Finding]:
    """Makes the findings of missing columns, with the columns that may be meant and one option that names them all."""
    meant = {name: column for name in names if (column := _meant(header, name)) is not None}
    # A column of one name can be meant once: an alias goes before a likeness of letters.
    meant = {
        name: column
        for name, column in meant.items()
        if list(meant.values()).count(column) == 1 or _plain(column) in _ALIASES[name]
    }
    option = ",".join(f"{name}={column}" for name, column in meant.items())
    findings = []
    for name in names:
        what = f"there is no column '{name}' (columns: {', '.join(header)})"
        holds = "the photographs' paths" if name == "image" else "the classes"
        hint = ""
        if name in meant:
            hint = f'Did you mean {meant[name]}? Then give --columns "{option}"{IN_A_FIT}. '
        findings.append(Finding(where, what, f"{hint}Name the column that holds {holds} '{name}'."))
    return findings


def _meant(header: Sequence[str], name: str) -> str | None:
    """Finds the column that may be meant by one of ours."""
    plain = {_plain(column): column for column in header}
    return next((plain[alias] for alias in _ALIASES[name] if alias in plain), nearest(name, header))


def unused(header: Sequence[str], where: str, *, strict: bool) -> list[Finding]:
    """Judges columns that are not used: an error where they look like boxes or ids, else named in one warning.

    Args:
        header: Our names where they are ours, the table's for others.
        where: The header's place.
        strict: Columns that look like ids are errors, as where photographs are divided.

    Returns:
        The findings.
    """
    others, findings = _others(header), misread(header, where, strict=strict)
    rest = [name for name in others if not (strict and _ID.match(_plain(name)))]
    if findings or not rest:
        return findings
    hints = []
    for name in rest:
        close = nearest(name, [ours for ours in TEXT_COLUMNS if ours not in header], cutoff=0.75)
        hints.append(f"'{name}'" + (f" (did you mean '{close}'?)" if close else ""))
    warnings.warn(f"{where}: columns that are not used: {', '.join(hints)}", ManifestWarning, stacklevel=4)
    return []


def misread(header: Sequence[str], where: str, *, strict: bool) -> list[Finding]:
    """Finds columns that look like boxes or ids and are not read as such.

    Args:
        header: See `unused`.
        where: See `unused`.
        strict: See `unused`.

    Returns:
        The findings.
    """
    others = _others(header)
    named = [name for name in ("lesion_id", "patient_id") if name in header]
    ids = [name for name in others if _ID.match(_plain(name))] if strict and len(named) < 2 else []
    return [*_boxes(header, others, where), *(_id_finding(name, where) for name in ids)]


def with_one_option(findings: Sequence[Finding], chosen: Mapping[str, str]) -> list[Finding]:
    """Makes all remedies name one ``--columns`` for every column, those that were named already among them.

    Args:
        findings: Some with a remedy of `lacking` or `misread`.
        chosen: See `parse_columns`.
    """
    texts = [text for finding in findings for text in _GIVEN.findall(finding.remedy)]
    pairs = [f"{ours}={theirs}" for theirs, ours in chosen.items()] + [one for text in texts for one in text.split(",")]
    whole = ",".join(dict.fromkeys(pairs))
    return [replace(finding, remedy=_GIVEN.sub(f'ive --columns "{whole}"', finding.remedy)) for finding in findings]


def _others(header: Sequence[str]) -> list[str]:
    return [name for name in header if name and name not in (*TEXT_COLUMNS, *CORNERS, IGNORE) and name[0] != "("]


def _boxes(header: Sequence[str], others: Sequence[str], where: str) -> list[Finding]:
    """Finds boxes under other names, where there are none under ours."""
    if all(name in header for name in BOX_COLUMNS[:2]) and (
        all(name in header for name in BOX_COLUMNS[2:]) or all(name in header for name in CORNERS)
    ):
        return []
    plain = {_side(name): name for name in (*others, *(name for name in header if name in (*BOX_COLUMNS, *CORNERS)))}
    for names, ours in ((_CORNER_NAMES, ("x", "y", *CORNERS)), (_SIZED_NAMES, BOX_COLUMNS)):
        for four in names:
            if all(name in plain for name in four):
                pairs = ",".join(f"{one}={plain[name]}" for one, name in zip(ours, four, strict=True))
                what = f"boxes seem to stand in {', '.join(plain[name] for name in four)}, which are not read as such"
                return [Finding(where, what, _remedy(pairs, [plain[name] for name in four]))]
    strange = [name for name in others if _side(name) in {*_BOX_WORDS, *BOX_COLUMNS, "cx", "cy", "xcenter", "ycenter"}]
    whole = [name for name in others if _plain(name) in _WHOLE_BOX]
    if len(strange) >= 3 or whole:
        what = f"boxes seem to stand in {', '.join(strange if len(strange) >= 3 else whole)}, which are not read"
        ignored = f'--columns "{IGNORE}={(strange or whole)[0]}"'
        remedy = f"Give x, y, width and height in pixels, or say that they are meant otherwise: {ignored}."
        return [Finding(where, what, remedy)]
    return []


def _id_finding(name: str, where: str) -> Finding:
    kind = "patient_id" if re.match(_PATIENT, _plain(name)) else "lesion_id"
    what = (
        f"{name!r} looks like the id of lesions or patients, and is not read as such: they would be divided at random"
    )
    return Finding(where, what, _remedy(f"{kind}={name}", [name]))


def _remedy(pairs: str, names: Sequence[str]) -> str:
    ignored = ",".join(f"{IGNORE}={name}" for name in names)
    return f'Give --columns "{pairs}"{IN_A_FIT}, or "{ignored}" to leave it out.'


def _side(name: str) -> str:
    """Names a side of a box without the word that says that it is one: ``bbox_xmin`` is ``xmin``."""
    return _BEFORE_A_SIDE.sub("", _plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
