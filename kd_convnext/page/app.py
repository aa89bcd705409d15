"""Builds the web application: its parts, its files, and the responses to errors."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from kd_convnext._version import __version__
from kd_convnext.errors import Finding, KDConvNeXtError
from kd_convnext.inference.trust.prediction_sets import lesions_needed
from kd_convnext.page.guard import Access, Guard
from kd_convnext.page.manifest_file import ConflictError
from kd_convnext.page.marking import Marking
from kd_convnext.page.marking_routes import marking_routes
from kd_convnext.page.schemas import Health
from kd_convnext.page.uploads import Uploads

if TYPE_CHECKING:  # both load torch, which marking alone does without
    from kd_convnext.data.manifest.boxes import Box
    from kd_convnext.page.asking import Asking
    from kd_convnext.page.reading import Reading

COVERAGE = 0.9
"""Of the prediction sets that the marking half counts lesions for, where no checkpoint is calibrated otherwise."""

_DESCRIPTION = """Answers of one checkpoint for photographs. For research: no answer may decide
about a patient. Every request needs `Authorization: Bearer TOKEN`, with the token of the address that the command
printed."""


@dataclass(frozen=True)
class Parts:
    """Parts of the page: marking, asking, reading; at least one of them.

    Attributes:
        marking: A folder to mark.
        asking: A checkpoint to ask.
        reading: The checkpoint's run.
    """

    marking: Marking | None = None
    asking: "Asking | None" = None
    reading: "Reading | None" = None


def create_app(parts: Parts, access: Access) -> ASGIApp:
    """Builds the application behind its guard.

    Args:
        parts: What the page has.
        access: Who is let in.
    """
    uploads = Uploads()

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        if parts.marking is not None:
            parts.marking.start()
        if parts.asking is not None:
            parts.asking.start()
        yield
        if parts.marking is not None:
            parts.marking.close()
        uploads.close()

    # The pages that FastAPI has for its description load their scripts from elsewhere.
    app = FastAPI(
        title="kd-convnext",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=living,
    )
    app.add_exception_handler(KDConvNeXtError, _findings)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    calibration = parts.asking.predictor.calibration if parts.asking else None
    coverage = calibration.coverage if calibration else COVERAGE
    if parts.marking is not None:
        app.include_router(marking_routes(parts.marking, lesions_needed(coverage), _suggestions(parts.asking)))
    if parts.asking is not None:
        _include_asking(app, parts.asking, parts.reading, uploads)
    static = files("kd_convnext.page") / "static"

    @app.get("/healthz", summary="Says that the server lives")
    def healthz() -> Health:
        return Health(status="ok")

    @app.get("/api/state", include_in_schema=False)
    def state() -> Any:
        return JSONResponse(_state(parts, coverage))

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return FileResponse(str(static / "index.html"))

    app.mount("/static", StaticFiles(directory=str(static)))
    return Guard(app, access)


def _include_asking(app: FastAPI, asking: "Asking", reading: "Reading | None", uploads: Uploads) -> None:
    from kd_convnext.page.asking_routes import asking_routes, reading_routes
    from kd_convnext.page.service import service_routes

    app.include_router(asking_routes(asking, uploads))
    app.include_router(service_routes(asking, uploads))
    if reading is not None:
        app.include_router(reading_routes(reading, asking))


def _suggestions(asking: "Asking | None") -> "Callable[[Path], Box | None] | None":
    if asking is None:
        return None
    from kd_convnext.inference.prediction import Photograph

    return lambda path: asking.suggestion(Photograph(path))


def _state(parts: Parts, coverage: float) -> dict[str, Any]:
    """Returns what the page must know before it asks for anything."""
    model = None
    if parts.asking is not None:
        network = parts.asking.predictor.network
        content = parts.asking.content([])
        model = {
            **asdict(network.info),
            "classes": list(network.card.class_names),
            "calibration": content["calibration"],
        }
    return {
        "version": __version__,
        "mark": None if parts.marking is None else {"manifest": str(parts.marking.file.path), "coverage": coverage},
        "model": model,
        "read": parts.reading is not None,
    }


def _findings(request: Request, error: Exception) -> Response:
    assert isinstance(error, KDConvNeXtError)
    status = 409 if isinstance(error, ConflictError) else 422
    return JSONResponse({"findings": [asdict(finding) for finding in error.findings]}, status)


def _wrong_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        Finding(
            ".".join(str(part) for part in entry["loc"][1:]), str(entry["msg"]), "Send what /openapi.json describes."
        )
        for entry in error.errors()
    ]
    return JSONResponse({"findings": [asdict(finding) for finding in found]}, 422)
