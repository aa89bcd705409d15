"""Defines the routes for classifying photographs and reading a run."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from kd_convnext.data.manifest.boxes import Box
from kd_convnext.inference.prediction import Photograph
from kd_convnext.page.asking import Asking
from kd_convnext.page.pictures import shown
from kd_convnext.page.reading import Reading
from kd_convnext.page.schemas import AskedIn, AskIn, BoxIn, CorrectionIn
from kd_convnext.page.uploads import Upload, Uploads

_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; font-src data:; frame-ancestors 'self'"
)
"""A report is a page of its own with its scripts inside; it gets neither the cookie's rights nor the network."""


def asking_routes(asking: Asking, uploads: Uploads) -> APIRouter:
    """Returns the addresses of the asking half.

    Args:
        asking: The checkpoint.
        uploads: Where sent photographs lie.
    """
    router = APIRouter(prefix="/api/ask", include_in_schema=False)

    def photograph_of(asked: AskedIn) -> Photograph:
        upload = uploads.get(asked.key)
        return Photograph(upload.path, _box(asked.box), upload.name, asked.lesion_id)

    @router.post("/photographs")
    async def send(request: Request, name: Annotated[str, Query(max_length=400)]) -> Any:
        data = await request.body()
        return _described(await run_in_threadpool(uploads.add, name, data))

    @router.delete("/photographs/{key}")
    def drop(key: str) -> Any:
        uploads.drop(key)
        return {}

    @router.get("/photographs/{key}")
    def photograph(key: str) -> Response:
        data, kind = shown(uploads.get(key).path)
        return Response(data, media_type=kind)

    @router.post("/answers")
    def answers(ask: AskIn) -> Any:
        return JSONResponse(asking.content([photograph_of(asked) for asked in ask.asked]))

    @router.post("/explanation")
    def explanation(asked: AskedIn) -> Any:
        return JSONResponse(asking.explanation(photograph_of(asked)))

    @router.post("/suggestion")
    def suggestion(asked: AskedIn) -> Any:
        box = asking.suggestion(photograph_of(asked))
        return {"box": asdict(box) if box else None}

    @router.post("/files")
    def files(ask: AskIn) -> Response:
        data = asking.files([photograph_of(asked) for asked in ask.asked])
        headers = {"content-disposition": 'attachment; filename="answers.zip"'}
        return Response(data, media_type="application/zip", headers=headers)

    return router


def reading_routes(reading: Reading, asking: Asking) -> APIRouter:
    """Returns the addresses of the reading part.

    Args:
        reading: The run.
        asking: Its checkpoint, for heat maps.
    """
    router = APIRouter(prefix="/api/read", include_in_schema=False)

    @router.get("/overview")
    def overview() -> Any:
        return JSONResponse(reading.overview())

    @router.get("/report")
    def report() -> Response:
        return FileResponse(reading.run.report, headers={"content-security-policy": _REPORT_POLICY})

    @router.get("/card")
    def card() -> Response:
        return HTMLResponse(reading.card())

    @router.get("/figures/{name}")
    def figure(name: str) -> Response:
        return FileResponse(reading.figure(name))

    @router.get("/table")
    def table() -> Any:
        return JSONResponse({"rows": reading.table()})

    @router.get("/explanation")
    def explanation(row: int) -> Any:
        return JSONResponse(asking.explanation(reading.photograph(row)))

    @router.post("/corrections")
    def correct(correction: CorrectionIn) -> Any:
        return {"corrections": reading.correct(correction.row, correction.label, correction.note)}

    return router


def _box(box: BoxIn | None) -> Box | None:
    return None if box is None else Box(**box.model_dump())


def _described(upload: Upload) -> dict[str, Any]:
    return {"key": upload.key, "name": upload.name, "width": upload.width, "height": upload.height}
