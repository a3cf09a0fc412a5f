"""What a worker does all day: read a question, answer it, with the same ClientApp as everywhere else.

torch is imported once, the cohort read once per run. What goes wrong is told to the agent as a code; the reason
stays in home/logs/worker.log.
"""

import logging
import time
from collections import Counter
from pathlib import Path

import torch
from flwr.app import DEFAULT_TTL, Context, Message, MessageType, Metadata, RecordDict

from client import pipe, sitekey
from client.app import app
from client.offer import Offer
from client.pipe import Answer, Describe, Question, Work
from client.site import open_site
from common.config import RunConfig, SiteConfig, canonical, load, sha256_of
from common.errors import ErrorCode, WardroundError
from common.network import tensor_shapes
from common.records import Refusal, TrainRequest, reply_from_record, request_to_record

_log = logging.getLogger(__name__)


def serve(home: Path, questions: int, answers: int, network: str) -> None:
    """Say that we are ready, then answer until the pipe is closed.

    Args:
        home: the site's home folder.
        questions: file descriptor to read from.
        answers: file descriptor to write to.
        network: "removed", or why it was not.
    """
    threads = load(SiteConfig, home / "site.toml").threads
    if threads is not None:
        torch.set_num_threads(threads)
    _log.info("ready: torch %s, %d threads", torch.__version__, torch.get_num_threads())
    sitekey.hold(home, pipe.key_from_frame(pipe.receive(questions)))
    pipe.send(answers, pipe.answer_to_frame(pipe.Ready(network)))
    while (frame := pipe.receive(questions)) is not None:
        pipe.send(answers, pipe.answer_to_frame(answer(pipe.question_from_frame(frame), home)))


def answer(question: Question, home: Path) -> Answer:
    """Do what the agent asks; a failure becomes a Refusal, its reason is logged here."""
    try:
        return _describe(question.run, home) if isinstance(question, Describe) else _work(question, home)
    except WardroundError as error:
        _log.error("%s", error)
        code = error.code
    except MemoryError:
        _log.exception("out of memory")
        code = ErrorCode.OUT_OF_MEMORY
    except Exception:  # noqa: BLE001 - logged; a text must not leave, whatever raised it
        _log.exception("unexpected failure")
        code = ErrorCode.INTERNAL
    return Refusal(sha256_of(question.run), 0 if isinstance(question, Describe) else question.request.round, code)


def _describe(run: RunConfig, home: Path) -> Offer:
    cohort = open_site(home).cohort(run)
    return Offer(
        patients=cohort.size,
        training=len(cohort.patients("train")),
        declared_size=cohort.declared_size,
        cohort_id=cohort.cohort_id,
        usable=len(cohort.cases),
        quarantined=dict(Counter(str(study.code) for study in cohort.quarantined)),
        tensors=tensor_shapes(run),
    )


def _work(work: Work, home: Path) -> Answer:
    metadata = Metadata(
        run_id=0,
        message_id=work.attempt,
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id=str(work.request.round),
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type=MessageType.TRAIN if isinstance(work.request, TrainRequest) else MessageType.EVALUATE,
    )
    context = Context(
        run_id=0,
        node_id=0,
        node_config={"home": str(home)},
        state=RecordDict(),
        run_config={"run": canonical(work.run), "attempt": work.attempt},
    )
    # Flower documents this signature as its own; the others read a task identity that only its processes have.
    message = Message(metadata=metadata, content=request_to_record(work.request))  # type: ignore[call-overload]
    return reply_from_record(app(message, context).content)
