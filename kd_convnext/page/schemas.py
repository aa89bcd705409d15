"""Defines the schemas of requests and responses, for validation and the OpenAPI description."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Pixels = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Name = Annotated[str, Field(max_length=200)]


class BoxIn(BaseModel):
    """A region in whole pixels of the photograph as it is seen (EXIF orientation applied)."""

    model_config = ConfigDict(extra="forbid")
    x: Pixels
    y: Pixels
    width: Pixels
    height: Pixels


class RegionIn(BaseModel):
    """One row of a photograph; ``place`` says which it was, null for a new one."""

    model_config = ConfigDict(extra="forbid")
    label: Name = ""
    lesion_id: Name = ""
    patient_id: Name = ""
    box: BoxIn | None = None
    place: Annotated[int, Field(ge=0)] | None = None


class ChangeIn(BaseModel):
    """All regions of a photograph, as they are to be."""

    client: Name
    image: Annotated[str, Field(max_length=4096)]
    version: Name
    regions: Annotated[list[RegionIn], Field(max_length=2000)]


class ClientIn(BaseModel):
    """A browser's tab."""

    client: Name


class ClassesIn(BaseModel):
    """The classes, in the order of their number keys."""

    classes: Annotated[list[str], Field(max_length=200)]


class AskedIn(BaseModel):
    """A region of a photograph that was sent before."""

    key: Name
    box: BoxIn | None = None
    lesion_id: Name = ""


class AskIn(BaseModel):
    """Regions to be answered for together."""

    asked: Annotated[list[AskedIn], Field(min_length=1, max_length=200)]


class CorrectionIn(BaseModel):
    """A test photograph's right label."""

    row: int
    label: Name
    note: Name = ""


class Answer(BaseModel):
    """One answer, of a region or of a lesion."""

    image: str
    lesion_id: str
    photographs: int
    box: BoxIn | None
    prediction: str
    probabilities: dict[str, float]
    prediction_set: list[str] | None = Field(description="Classes that cannot be ruled out; null when not calibrated")
    abstain: bool = Field(description="Whether a person should decide")
    reasons: list[str] = Field(description="Why the model abstains, in words")
    gate_score: float | None = Field(description="How unlike the training photographs; up to 1 passes")


class Unanswered(BaseModel):
    """A region without an answer."""

    image: str
    problem: str
    remedy: str


class Answers(BaseModel):
    """Answers as ``kd-convnext classify`` writes them into answers.json."""

    model: dict[str, Any]
    calibration: dict[str, Any] | None
    answers: list[Answer]
    lesions: list[Answer]
    failures: list[Unanswered]


class FindingOut(BaseModel):
    """One problem."""

    where: str
    what: str
    remedy: str


class Problems(BaseModel):
    """Problems for which a request was refused."""

    findings: list[FindingOut]


class Health(BaseModel):
    """Health of the server."""

    status: str
