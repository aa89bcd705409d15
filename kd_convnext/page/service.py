"""Defines the route for other programs: ``POST /v1/classify``, with its OpenAPI description."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from kd_convnext.data.manifest.boxes import Box
from kd_convnext.errors import Finding, ManifestError
from kd_convnext.inference.prediction import Photograph
from kd_convnext.page.asking import Asking
from kd_convnext.page.schemas import Answers, BoxIn, Problems
from kd_convnext.page.uploads import Uploads

_BOXES = TypeAdapter(list[BoxIn])
_REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"description": "No token, or a wrong one"},
    413: {"model": Problems, "description": "The photograph is too large"},
    422: {"model": Problems, "description": "The photograph or a box cannot be used"},
}


def service_routes(asking: Asking, uploads: Uploads) -> APIRouter:
    """Returns the address for other programs.

    Args:
        asking: The checkpoint.
        uploads: Where a sent photograph lies while it is answered for.
    """
    router = APIRouter(prefix="/v1")

    @router.post("/classify", summary="Answers for regions of a photograph", response_model=Answers, responses=_REFUSED)
    def classify(
        photograph: Annotated[UploadFile, File(description="JPEG, PNG, TIFF, or what else kd-convnext reads")],
        boxes: Annotated[
            str, Form(description='JSON list of {"x", "y", "width", "height"} in pixels; empty: the whole photograph')
        ] = "",
        lesion_id: Annotated[
            str, Form(max_length=200, description="Given, the regions are also combined into one answer")
        ] = "",
    ) -> Any:
        upload = uploads.add(photograph.filename or "photograph", photograph.file.read())
        try:
            regions = [Photograph(upload.path, box, upload.name, lesion_id) for box in _boxes(boxes)]
            content = asking.content(regions)
        finally:
            uploads.drop(upload.key)
        if not content["answers"]:
            raise ManifestError(
                Finding(failure["image"], failure["problem"], failure["remedy"]) for failure in content["failures"]
            )
        return JSONResponse(content)

    return router


def _boxes(text: str) -> list[Box | None]:
    if not text.strip():
        return [None]
    try:
        found = _BOXES.validate_json(text)
    except ValidationError as error:
        what = f"not a list of boxes ({error.errors()[0]['msg']})"
        raise ManifestError(
            Finding("boxes", what, 'Send [{"x": 412, "y": 300, "width": 260, "height": 244}].')
        ) from error
    return [Box(**box.model_dump()) for box in found] or [None]
