"""Defines the routes of marking: photographs, regions, classes, progress, checks."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from kd_convnext.data.manifest.boxes import Box
from kd_convnext.page.manifest_file import Region
from kd_convnext.page.marking import Marking
from kd_convnext.page.pictures import shown
from kd_convnext.page.schemas import ChangeIn, ClassesIn, ClientIn

Image = Annotated[str, Query(max_length=4096)]
Suggest = Callable[[Path], Box | None]


def marking_routes(marking: Marking, lesions_needed: int, suggest: Suggest | None) -> APIRouter:
    """Returns the routes of marking.

    Args:
        marking: The folder.
        lesions_needed: Calibration lesions of a class that prediction sets need.
        suggest: Finds a region in a photograph, where a checkpoint can.
    """
    router = APIRouter(prefix="/api/mark", include_in_schema=False)

    @router.get("/photographs")
    def photographs() -> Any:
        return JSONResponse(marking.photographs())

    @router.get("/digest")
    def digest() -> Any:
        return {"digest": marking.file.read().digest}

    @router.get("/thumbnail")
    def thumbnail(image: Image) -> Response:
        data = marking.thumbnails.of(marking.folder.path(image))
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=300"})

    @router.get("/photograph")
    def photograph(image: Image) -> Response:
        data, kind = shown(marking.folder.path(image))
        return Response(data, media_type=kind, headers={"cache-control": "private, max-age=60"})

    @router.get("/regions")
    def regions(image: Image) -> Any:
        return JSONResponse(marking.regions(image))

    @router.put("/regions")
    def change(change: ChangeIn) -> Any:
        regions = [
            Region(**region.model_dump(exclude={"box"}), box=Box(**region.box.model_dump()) if region.box else None)
            for region in change.regions
        ]
        return JSONResponse(marking.change(change.client, change.image, change.version, regions))

    @router.post("/undo")
    def undo(client: ClientIn) -> Any:
        return JSONResponse(marking.undo(client.client))

    @router.put("/classes")
    def classes(names: ClassesIn) -> Any:
        return {"classes": marking.name_classes(names.classes)}

    @router.get("/progress")
    def progress() -> Any:
        return {"classes": marking.progress(lesions_needed)}

    @router.get("/checks")
    def checks() -> Any:
        return {"findings": marking.checks()}

    @router.get("/suggestion")
    def suggestion(image: Image) -> Any:
        box = suggest(marking.folder.path(image)) if suggest else None
        return {"box": asdict(box) if box else None}

    return router
