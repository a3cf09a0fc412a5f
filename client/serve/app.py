"""The routes. Behind `common.web.guard`; what they answer is JSON, or a file of a result.

POST   /v1/jobs                      a file or a ZIP of a study's files -> 202, the job
GET    /v1/jobs/{job}                how far it is; when done, what was found and which files there are
GET    /v1/jobs/{job}/files/{name}   a file of the result, once
DELETE /v1/jobs/{job}                forget it
POST   /v1/predict?answer=json       the same at once: waits, and answers scores or one file
GET    /v1/figures                   counts, places, latency by volume and by slice
GET    /health                       live, ready; without a token
GET    /openapi.json                 all of this as OpenAPI
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from client.serve.jobs import BusyError, Job, Jobs, State, StoppingError
from client.serve.upload import Limits, TooLargeError, receive, unpack
from client.serve.work import Figures
from common.errors import ConfigError, DataError, ErrorCode, WardroundError, code_of

_TYPES = {
    ".dcm": "application/dicom",
    ".gz": "application/gzip",
    ".json": "application/json",
    ".png": "image/png",
    ".pgm": "image/x-portable-graymap",
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "One DICOM file, NIfTI volume or picture, or a ZIP of the files of a study.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_RETRY_S = "2"
# How an error is answered; the rest is a fault of ours.
_STATUS = {BusyError: 429, StoppingError: 503, TooLargeError: 413, DataError: 422, ConfigError: 507}


def made(jobs: Jobs, figures: Figures, limits: Limits, model_sha256: str) -> FastAPI:
    """The application.

    Args:
        jobs: the queue.
        figures: what was done.
        limits: of uploads.
        model_sha256: of the model, hex.
    """
    app = FastAPI(
        title="Wardround",
        version=metadata.version("wardround"),
        description="Research software: no medical device, and nothing it answers is for diagnosis.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.router.redirect_slashes = False

    @app.exception_handler(WardroundError)
    async def _explained(_request: Request, error: WardroundError) -> Response:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        headers = {"retry-after": _RETRY_S} if status == 429 else {}
        return JSONResponse(_error(error.code, str(error)), status, headers)

    @app.exception_handler(HTTPException)
    async def _plain(_request: Request, error: HTTPException) -> Response:
        return JSONResponse(_error(ErrorCode.BAD_REQUEST, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, _problem: RequestValidationError) -> Response:
        # Its text would repeat what was sent.
        return JSONResponse(_error(ErrorCode.BAD_REQUEST, "the request does not fit /openapi.json."), 422)

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, bool]:
        """Whether the server lives, and whether it takes jobs."""
        return {"live": True, "ready": not jobs.stopping}

    bearer = [_documented(HTTPBearer(auto_error=False))]

    @app.post("/v1/jobs", status_code=202, openapi_extra=_BODY, dependencies=bearer, tags=["jobs"])
    async def submit(request: Request) -> dict[str, Any]:
        """Take a study; it waits for its turn."""
        return _told(await _taken(request, jobs, limits), jobs)

    @app.get("/v1/jobs/{name}", dependencies=bearer, tags=["jobs"])
    async def look(name: str) -> dict[str, Any]:
        """How far a job is, and what was found."""
        return _told(_found(jobs, name), jobs)

    @app.get("/v1/jobs/{name}/files/{file}", dependencies=bearer, tags=["jobs"], response_class=Response)
    async def fetch(name: str, file: str) -> Response:
        """A file of the result. It is given once; with the last one the job is forgotten."""
        return _file(file, await asyncio.to_thread(jobs.fetch, _found(jobs, name), file))

    @app.delete("/v1/jobs/{name}", status_code=204, dependencies=bearer, tags=["jobs"])
    async def forget(name: str) -> None:
        """Remove a job with all that it holds."""
        jobs.forget(_found(jobs, name))

    @app.post("/v1/predict", openapi_extra=_BODY, dependencies=bearer, tags=["at once"], response_class=Response)
    async def predict(request: Request, answer: str = "json") -> Response:
        """Take one study and wait for it. answer: json, or the name of a file of the result, such as overlay.png."""
        wanted = frozenset() if answer == "json" else frozenset([answer])
        job = await _taken(request, jobs, limits, wanted)
        try:
            await asyncio.wrap_future(job.ended)
            if job.problem is not None:
                status = 503 if job.problem[0] == ErrorCode.DEADLINE else 422
                return JSONResponse(_error(*job.problem), status)
            if answer == "json":
                return JSONResponse({**(job.answer or {}), "state": job.state})
            return _file(answer, await asyncio.to_thread(jobs.fetch, job, answer))
        finally:
            jobs.forget(job)

    @app.get("/v1/figures", dependencies=bearer, tags=["health"])
    async def told() -> dict[str, Any]:
        """Counts since the start, and milliseconds by volume and by slice over the last studies."""
        latency = [asdict(row) for row in figures.latency]
        return {"model": model_sha256, "done": figures.done, "failed": figures.failed, "latency-ms": latency}

    return app


async def _taken(request: Request, jobs: Jobs, limits: Limits, wanted: frozenset[str] | None = None) -> Job:
    """Receive an upload into a place of the queue; whatever interrupts it gives the place back."""
    job = jobs.reserve(wanted)
    try:
        upload = job.folder / "upload"
        async with contextlib.aclosing(request.stream()) as stream:
            await receive(_parts(stream), upload, limits)
        await asyncio.to_thread(unpack, upload, job.studies, limits)
        jobs.enqueue(job)
    except BaseException as error:
        jobs.forget(job)
        if isinstance(error, ClientDisconnect):
            raise DataError("the upload ended early. Send it again.") from None
        if isinstance(error, OSError):
            raise ConfigError("the upload cannot be written: is the disk full?", code_of(error)) from None
        raise
    return job


async def _parts(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for part in stream:
        if part:
            yield part


def _found(jobs: Jobs, name: str) -> Job:
    job = jobs.find(name)
    if job is None:
        raise HTTPException(404, "there is no such job, or none any more.")
    return job


def _told(job: Job, jobs: Jobs) -> dict[str, Any]:
    told: dict[str, Any] = {"job": job.name, "state": job.state, "studies": {"done": job.done, "of": job.total}}
    if job.state is State.QUEUED:
        told["before"] = jobs.position(job)
    if job.problem is not None:
        told |= _error(*job.problem)
    if job.answer is not None:
        told["result"] = job.answer
        told["files"] = sorted(job.files)
    return told


def _file(name: str, data: bytes | None) -> Response:
    if data is None:
        raise HTTPException(404, "the result has no such file, or it was fetched already.")
    kind = _TYPES.get(f".{name.rpartition('.')[2]}", "application/octet-stream")
    return Response(data, media_type=kind, headers={"content-disposition": "attachment"})


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _documented(scheme: HTTPBearer) -> Any:
    """The token in OpenAPI; it is asked for by the guard."""
    from fastapi import Security  # noqa: PLC0415

    return Security(scheme)


__all__ = ["made"]
